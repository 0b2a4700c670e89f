// Convolutions by warpgroups, beside those of convolution.cu.
#pragma once

#include "cuda/kernels.h"

namespace unifluid::cuda {

// Whether `convolve_by_warpgroups` takes such a convolution.
bool suits_warpgroups(const ConvolutionArgs&);
// Only where `limits().warpgroups`; the bits of the other kernels.
void convolve_by_warpgroups(Queue&, const ConvolutionArgs&);
// The same in the tile of `columns` columns of kWarpgroupTiles, for trying each.
void convolve_by_warpgroups(Queue&, const ConvolutionArgs&, int columns);

}  // namespace unifluid::cuda
