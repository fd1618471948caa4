// Packing for a CPU: stored weights into the tiles that the kernels read, and nibbles of other layouts into pairs.
// quant/cpu_kernels.cpp tells how the library is built and called. `variant` is not used: loops over 64-bit words are
// as fast as memory on every machine. Bytes lie as on a little-endian machine, as in all files that are read.

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

const int TILE = 16;
const int64_t SPAN = 128;  // words of a row that are repacked at once, so that a tile's rows stay in the cache

// A word of eight numbers: four pairs with the first number high → byte k with number k low and number k + 4 high,
// both plus 8.
inline uint32_t split(uint32_t w) {
    return ((w >> 4 & 0x0000000F) | (w << 8 & 0x00000F00) | (w << 4 & 0x000F0000) | (w << 16 & 0x0F000000) |
            (w >> 16 & 0x000000F0) | (w >> 4 & 0x0000F000) | (w >> 8 & 0x00F00000) | (w << 4 & 0xF0000000)) ^
           0x88888888u;
}

// The even bytes of eight, side by side.
inline uint32_t even_bytes(uint64_t w) {
    w &= 0x00FF00FF00FF00FFull;
    w = (w | w >> 8) & 0x0000FFFF0000FFFFull;
    return static_cast<uint32_t>(w | w >> 16);
}

}  // namespace

extern "C" {

// Rows of `row_bytes` bytes → tiles of 16 rows, `words` words of 32 bits a row; what fills them up is zero before the
// numbers become unsigned.
void glm_infill_tile(int variant, int bits, const uint8_t* stored, int64_t rows, int64_t row_bytes, int64_t words,
                     uint32_t* out, int threads) {
    (void)variant;
    const int64_t tiles = (rows + TILE - 1) / TILE;
#pragma omp parallel for num_threads(threads)
    for (int64_t tile = 0; tile < tiles; tile++) {
        uint32_t held[TILE][SPAN];
        for (int64_t first = 0; first < words; first += SPAN) {
            const int64_t count = std::min(SPAN, words - first);
            for (int row = 0; row < TILE; row++) {
                const int64_t number = tile * TILE + row, there = row_bytes - 4 * first;
                const int64_t copied = number < rows ? std::max<int64_t>(std::min(4 * count, there), 0) : 0;
                std::memset(held[row], 0, sizeof(held[row]));
                if (copied) std::memcpy(held[row], stored + number * row_bytes + 4 * first, copied);
                if (bits == 4)
                    for (int64_t i = 0; i < count; i++) held[row][i] = split(held[row][i]);
                else
                    for (int64_t i = 0; i < count; i++) held[row][i] ^= 0x80808080u;
            }
            uint32_t* to = out + (tile * words + first) * TILE;
            for (int64_t i = 0; i < count; i++)
                for (int row = 0; row < TILE; row++) to[i * TILE + row] = held[row][i];
        }
    }
}

// Blocks of 32 nibbles, `stride` bytes apart, byte j with number j low and number j + 16 high, all plus 8 → 16 bytes of
// pairs of signed numbers, the first one high.
void glm_infill_pair_halves(int variant, const uint8_t* blocks, int64_t count, int64_t stride, uint8_t* out,
                            int threads) {
    (void)variant;
#pragma omp parallel for num_threads(threads)
    for (int64_t block = 0; block < count; block++) {
        uint64_t half[2];
        std::memcpy(half, blocks + block * stride, 16);
        uint32_t pairs[4];
        for (int i = 0; i < 2; i++) {
            pairs[i] = even_bytes((half[i] & 0x000F000F000F000Full) << 4 | (half[i] >> 8 & 0x000F000F000F000Full));
            pairs[i + 2] = even_bytes((half[i] & 0x00F000F000F000F0ull) | (half[i] >> 12 & 0x000F000F000F000Full));
        }
        for (uint32_t& pair : pairs) pair ^= 0x88888888u;
        std::memcpy(out + 16 * block, pairs, 16);
    }
}

}  // extern "C"
