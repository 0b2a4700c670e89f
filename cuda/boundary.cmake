# Sets BOUNDARY_VERSION, the number of what both sides of the boundary are compiled from: the first
# 64 bits of a SHA-256 of its headers. The addon (CMakeLists.txt) and the CUDA library
# (cuda/CMakeLists.txt, or scripts/build-cuda.mjs where there is no cmake) are compiled with it, so
# that one never meets the other with structs, or a rule of sizes, of another commit.
get_filename_component(ROOT ${CMAKE_CURRENT_LIST_DIR} DIRECTORY)
set(HASHES "")
foreach(HEADER core/tensor.h core/backend.h core/training_backend.h cuda/boundary.h cuda/size_class.h)
  # A change configures anew: no build keeps the number of an older one.
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${ROOT}/${HEADER})
  file(SHA256 ${ROOT}/${HEADER} HASH)
  string(APPEND HASHES ${HASH})
endforeach()
string(SHA256 HASH "${HASHES}")
string(SUBSTRING ${HASH} 0 16 HASH)
set(BOUNDARY_VERSION 0x${HASH})
