// How rows go from block to block of a team that takes the diffusion head's sampling steps: stored,
// with a barrier, or by posts (diffusion_steps.cu says which of them when).
//
// What a block hands out, all of the team can receive after the next `meet`, before the one after
// that. Rows count from the team's first. The two kinds have the same members, but for `begin`.
#pragma once

#include "cuda/device/exchange.h"
#include "cuda/device/grid.h"
#include "cuda/kernels/diffusion_steps.h"
#include "cuda/kernels/diffusion_tile.h"

namespace unifluid::cuda::steps {

template <class T, bool kPosts>
class RowExchange;

// ---- stored, with a barrier ----

template <class T>
class RowExchange<T, false> {
 public:
  UNIFLUID_DEVICE RowExchange(const StepsParams& params, const StepsTeam& team)
      : p(params), team(team) {}

  UNIFLUID_DEVICE void meet() {
    team_barrier(p.arrivals + blockIdx.x / p.members, p.members, round);
  }

  UNIFLUID_DEVICE void hand_out_hidden(int row, int column, float v) const {
    hidden_row(row)[column] = v;
  }
  // By all lanes of a warp together: `mine` where there is such an element.
  UNIFLUID_DEVICE void hand_out_inner(int row, int column, float v, bool mine) const {
    if (mine) inner_row(row)[column] = from_float<T>(v);
  }
  UNIFLUID_DEVICE void hand_out_output(int row, int column, float v) const {
    p.out[static_cast<int64_t>(team.row + row) * p.outputs + column] = v;
  }

  // Elements k .. of a row as they are now. 0: all have come.
  UNIFLUID_DEVICE uint32_t look_at_hidden(int row, int k, float (&values)[kSize<T>]) const {
    const float* from = hidden_row(row) + k;
    for (int i = 0; i < kSize<T>; i += 4) {
      const Piece four = piece_of(load_fresh(reinterpret_cast<const uint4*>(from + i)));
      for (int e = 0; e < 4; ++e)
        values[i + e] = k + i + e < p.width ? element<float>(four, e) : 0.0f;
    }
    return 0;
  }
  // put(row, piece, values) for the thread's pieces of all rows, of `row_pieces` each.
  template <class Put>
  UNIFLUID_DEVICE void receive_inner(int row_pieces, Put put) const {
    for (int row = 0, piece = static_cast<int>(threadIdx.x);; piece += kThreads) {
      for (; piece >= row_pieces; piece -= row_pieces) ++row;
      if (row >= team.rows) break;
      const int k = piece * kSize<T>;
      Piece values{};
      if (k < p.width)
        values = piece_of(load_fresh(reinterpret_cast<const uint4*>(inner_row(row) + k)));
      if (p.width < k + kSize<T>) {  // nobody wrote what lies behind the width
        float inside[kSize<T>];
        for (int i = 0; i < kSize<T>; ++i)
          inside[i] = k + i < p.width ? element<T>(values, i) : 0.0f;
        values = piece_of<T>(inside);
      }
      put(row, piece, values);
    }
  }
  // Outputs of the network, of (rows[i], columns[i]).
  template <int kCount>
  UNIFLUID_DEVICE void receive_outputs(const int (&rows)[kCount], const int (&columns)[kCount],
                                       float (&values)[kCount]) const {
    for (int i = 0; i < kCount; ++i)
      values[i] =
          load_fresh(p.out + static_cast<int64_t>(team.row + rows[i]) * p.outputs + columns[i]);
  }

 private:
  UNIFLUID_DEVICE float* hidden_row(int row) const {
    return p.hidden + static_cast<int64_t>(team.row + row) * p.stride;
  }
  UNIFLUID_DEVICE T* inner_row(int row) const {
    return static_cast<T*>(p.inner) + static_cast<int64_t>(team.row + row) * p.stride;
  }

  const StepsParams& p;
  const StepsTeam team;
  uint32_t round = 0;
};

// ---- posts ----

template <class T>
class RowExchange<T, true> {
 public:
  UNIFLUID_DEVICE RowExchange(const StepsParams& params, const StepsTeam& team)
      : p(params), team(team) {}

  // Before anything is handed out.
  UNIFLUID_DEVICE void begin() {
    handed_out = p.posts + static_cast<int64_t>(team.row) * p.posts_stride;
  }
  UNIFLUID_DEVICE void meet() {
    ++round;
    received = handed_out;
    slot = slot == kPostRounds - 1 ? 0 : slot + 1;
    handed_out = p.posts + (static_cast<int64_t>(slot) * p.rows + team.row) * p.posts_stride;
  }

  UNIFLUID_DEVICE void hand_out_hidden(int row, int column, float v) const {
    post(handed_out + row * p.posts_stride + post_place<T>(column), v, round + 1);
  }
  // With pairs lane l + 16 has the row after lane l's.
  UNIFLUID_DEVICE void hand_out_inner(int row, int column, float v, bool mine) const {
    if constexpr (kPairs) {
      const float next = __shfl_down_sync(kAllLanes, v, kTileColumns);
      if (mine && row % 2 == 0)
        post(handed_out + row * p.posts_stride + post_place<T>(column),
             __uint_as_float(pack_bf16(v, row + 1 < team.rows ? next : 0.0f)), round + 1);
    } else if (mine) {
      hand_out_hidden(row, column, v);
    }
  }
  UNIFLUID_DEVICE void hand_out_output(int row, int column, float v) const {
    post(handed_out + row * p.posts_stride + column, v, round + 1);
  }

  UNIFLUID_DEVICE uint32_t look_at_hidden(int row, int k, float (&values)[kSize<T>]) const {
    const Posted* from = received + row * p.posts_stride + post_place<T>(k);
    uint32_t other = 0;
#pragma unroll
    for (int i = 0; i < kSize<T>; i += 2) {
      Posted now[2];
      look(from + i * kWarp, now);
      for (int e = 0; e < 2; ++e) {
        values[i + e] = now[e].value;
        other |= now[e].round ^ round;
      }
    }
    return other;
  }
  template <class Put>
  UNIFLUID_DEVICE void receive_inner(int row_pieces, Put put) const {
    for (int first = 0; first < team.rows; first += kReceived)
      for (int piece = static_cast<int>(threadIdx.x); piece < row_pieces; piece += kThreads) {
        float values[kWords][kSize<T>];
        for (Watch watch;; watch.look_again()) {
          uint32_t other = 0;
#pragma unroll
          for (int i = 0; i < kWords; ++i)
            if (first + i * kRowsOfWord < team.rows)
              other |= look_at_hidden(first + i * kRowsOfWord, piece * kSize<T>, values[i]);
          if (other == 0) break;
        }
#pragma unroll
        for (int i = 0; i < kWords; ++i) {
          const int row = first + i * kRowsOfWord;
          if (row >= team.rows) break;
          if constexpr (kPairs) {
            Piece rows[2];
            for (int w = 0; w < 4; ++w) {
              const uint32_t even = __float_as_uint(values[i][2 * w]),
                             odd = __float_as_uint(values[i][2 * w + 1]);
              rows[0].word[w] = (even & 0xffffu) | odd << 16;
              rows[1].word[w] = even >> 16 | (odd & 0xffff0000u);
            }
            put(row, piece, rows[0]);
            if (row + 1 < team.rows) put(row + 1, piece, rows[1]);
          } else {
            put(row, piece, piece_of<T>(values[i]));
          }
        }
      }
  }
  template <int kCount>
  UNIFLUID_DEVICE void receive_outputs(const int (&rows)[kCount], const int (&columns)[kCount],
                                       float (&values)[kCount]) const {
    const Posted* at[kCount];
    for (int i = 0; i < kCount; ++i) at[i] = received + rows[i] * p.posts_stride + columns[i];
    receive(at, round, values);
  }

 private:
  // Two rows in a word.
  static constexpr bool kPairs = sizeof(T) == 2;
  // Rows of inputs that a thread waits for at once, and the words of each column that hold them.
  static constexpr int kReceived = 2, kRowsOfWord = kPairs ? 2 : 1,
                       kWords = kReceived / kRowsOfWord;

  const StepsParams& p;
  const StepsTeam team;
  uint32_t round = 0;
  // The team's posts of this round and of the next, and where that is among kPostRounds.
  const Posted* received = nullptr;
  Posted* handed_out = nullptr;
  int slot = 0;
};

}  // namespace unifluid::cuda::steps
