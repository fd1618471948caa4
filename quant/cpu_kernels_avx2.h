// The body of the two 256-bit variants, included inside each. TARGET differs, and before it:
//
// - `planes<Bits>`: how many registers of weights a register of packed ones holds, which face 4 bytes of a row each;
// - `plane<Bits>(packed, n)`: one of them, and `rows<Bits>(p, row)`: the bytes that they face;
// - `add<Bits>(sum, w, a)`: adds products of neighbours to a sum; with `kShort<Bits>` sums have 16 bits and hold the
//   products of 32 inputs, else they have 32 bits.

// Adds the products of four blocks of weights, 64 bytes each, to the sums of the two halves of a tile.
template <int Bits, int Rows>
TARGET static inline __attribute__((always_inline)) void run(const uint8_t* w, const int8_t* a, int64_t stride,
                                                             __m256i (&sum)[Rows][2]) {
#pragma GCC unroll 4
    for (int block = 0; block < 4; ++block, w += 64) {
        __m256i packed[2];
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half)
            packed[half] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 32 * half));
        // A single row of int8 reads at the memory's own pace, and was a fifth slower with it.
        if (Bits == 4 || Rows > 1) _mm_prefetch(reinterpret_cast<const char*>(w + 4096), _MM_HINT_T0);
#pragma GCC unroll 2
        for (int n = 0; n < planes<Bits>; ++n, a += 4) {
            __m256i own[2];
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half) own[half] = plane<Bits>(packed[half], n);
#pragma GCC unroll 4
            for (int r = 0; r < Rows; ++r) {
                int32_t four;
                std::memcpy(&four, a + r * stride, 4);
#pragma GCC unroll 2
                for (int half = 0; half < 2; ++half) {
                    sum[r][half] = add<Bits>(sum[r][half], own[half], _mm256_set1_epi32(four));
                    // GCC would compute products far ahead, and have too few registers for them.
                    __asm__("" : "+x"(sum[r][half]));
                }
            }
        }
    }
}

template <int Bits, bool ByGroup, int Rows, int Tiles>
TARGET static void tile(const Product& p, int64_t row, int64_t t) {
    // Sixteen registers hold the sums of two halves of a tile for four rows at most; more rows pass afterwards.
    if constexpr (Rows > 4) {
        tile<Bits, ByGroup, 4, 1>(p, row, t);
        tile<Bits, ByGroup, Rows - 4, 1>(p, row + 4, t);
    } else {
        constexpr int kInputs = Bits == 4 ? 8 : 4;
        const uint8_t* w = p.weight + t * (p.inputs / kInputs) * 64;
        const uint16_t* by_group = static_cast<const uint16_t*>(p.weight_scale) + t * p.groups * kTile;
        const int64_t stride = p.inputs / kInputs * 4 * planes<Bits>;  // bytes of a row
        const int8_t* a = rows<Bits>(p) + row * stride;
        __m256 sum[Rows][2];
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_ps();
        for (int64_t g = 0; g < p.groups; ++g) {
            __m256i total[Rows][2];
#pragma GCC unroll 4
            for (int r = 0; r < Rows; ++r)
                total[r][0] = total[r][1] = _mm256_set1_epi32(p.starts[(row + r) * p.groups + g]);
            for (int j = 0; j < p.group; j += 4 * kInputs, w += 4 * 64, a += 4 * 4 * planes<Bits>) {
                if constexpr (kShort<Bits>) {
                    __m256i few[Rows][2];
#pragma GCC unroll 4
                    for (int r = 0; r < Rows; ++r) few[r][0] = few[r][1] = _mm256_setzero_si256();
                    run<Bits, Rows>(w, a, stride, few);
#pragma GCC unroll 4
                    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
                        for (int half = 0; half < 2; ++half) {
                            __m256i pairs = _mm256_madd_epi16(few[r][half], _mm256_set1_epi16(1));
                            total[r][half] = _mm256_add_epi32(total[r][half], pairs);
                        }
                } else {
                    run<Bits, Rows>(w, a, stride, total);
                }
            }
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half) {
                __m256 weight_scale;
                if (ByGroup)
                    weight_scale = _mm256_cvtph_ps(
                        _mm_loadu_si128(reinterpret_cast<const __m128i*>(by_group + g * kTile + 8 * half)));
#pragma GCC unroll 4
                for (int r = 0; r < Rows; ++r) {
                    __m256 scale = _mm256_set1_ps(p.scales[(row + r) * p.groups + g]);
                    if (ByGroup) scale = _mm256_mul_ps(scale, weight_scale);
                    sum[r][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total[r][half]), scale, sum[r][half]);
                }
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) {
            float values[kTile];
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half) _mm256_storeu_ps(values + 8 * half, sum[r][half]);
            for (int o = 0; o < kTile && t * kTile + o < p.outputs; ++o) {
                int64_t output = t * kTile + o;
                float by_row = ByGroup ? 1.0f : static_cast<const float*>(p.weight_scale)[output];
                p.out[(row + r) * p.outputs + output] = std::fma(values[o], by_row, p.bias ? p.bias[output] : 0.0f);
            }
        }
    }
}

// Eight floats of which `left` are there; zeros otherwise.
TARGET static inline __m256 some(const float* x, int left) {
    static const int32_t mask[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    if (left >= 8) return _mm256_loadu_ps(x);
    return _mm256_maskload_ps(x,
                              _mm256_loadu_si256(reinterpret_cast<const __m256i*>(mask + 8 - (left > 0 ? left : 0))));
}

TARGET static void quantize_group(const float* x, int n, int group, float offset, int8_t* codes, float* scale,
                                  int32_t* start) {
    const __m256 largest = _mm256_set1_ps(3.4028234e38f), sign = _mm256_set1_ps(-0.0f);
    __m256 most = _mm256_setzero_ps(), bad = _mm256_setzero_ps();
    for (int i = 0; i < n; i += 8) {
        const __m256 v = _mm256_andnot_ps(sign, some(x + i, n - i));
        bad = _mm256_or_ps(bad, _mm256_cmp_ps(v, largest, _CMP_NLE_UQ));
        most = _mm256_max_ps(most, v);
    }
    float lanes[8], peak = 0.0f;
    _mm256_storeu_ps(lanes, most);
    for (float lane : lanes) peak = lane > peak ? lane : peak;
    const bool finite = !_mm256_movemask_ps(bad);
    float inverse = peak > 0.0f ? 127.0f / peak : 0.0f;
    if (!finite || std::isinf(inverse)) inverse = 0.0f;
    const __m256 factor = _mm256_set1_ps(inverse);
    __m256i sum = _mm256_setzero_si256();
    for (int i = 0; i < group; i += 16) {
        __m256i code[2];
        for (int part = 0; part < 2; ++part) {
            const int at = i + 8 * part;
            code[part] = _mm256_setzero_si256();
            if (inverse != 0.0f) code[part] = _mm256_cvtps_epi32(_mm256_mul_ps(some(x + at, n - at), factor));
            sum = _mm256_add_epi32(sum, code[part]);
        }
        const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(code[0], code[1]), 0xd8);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i),
                         _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
    }
    int32_t sums[8], all = 0;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums), sum);
    for (int32_t lane : sums) all += lane;
    *scale = finite ? peak / 127.0f : NAN;
    *start = -int32_t(offset) * all;
}
