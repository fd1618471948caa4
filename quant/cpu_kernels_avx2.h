// The body of the two 256-bit variants, included inside each; TARGET and dot<Bits> differ.

template <int Bits, bool ByGroup, int Rows, int Tiles>
TARGET static void tile(const Product& p, int64_t row, int64_t t) {
    // Sixteen registers hold two halves of a tile for two rows at most; more rows pass one after the other.
    if constexpr (Rows > 2) {
        tile<Bits, ByGroup, 2, 1>(p, row, t);
        tile<Bits, ByGroup, Rows - 2, 1>(p, row + 2, t);
    } else {
        constexpr int kInputs = Bits == 4 ? 8 : 4;
        const __m256i low = _mm256_set1_epi8(15);
        const uint8_t* w = p.weight + t * (p.inputs / kInputs) * 64;
        const uint16_t* by_group = static_cast<const uint16_t*>(p.weight_scale) + t * p.groups * kTile;
        __m256 sum[Rows][2];
        for (int r = 0; r < Rows; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_ps();
        for (int64_t g = 0; g < p.groups; ++g) {
            __m256i acc[Rows][2];
            for (int r = 0; r < Rows; ++r)
                acc[r][0] = acc[r][1] = _mm256_set1_epi32(p.starts[(row + r) * p.groups + g]);
            for (int j = 0; j < p.group; j += kInputs, w += 64)
#pragma GCC unroll 2
                for (int half = 0; half < 2; ++half) {
                    __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 32 * half));
                    __m256i first = Bits == 4 ? _mm256_and_si256(packed, low) : packed;
                    __m256i second = Bits == 4 ? _mm256_and_si256(_mm256_srli_epi16(packed, 4), low) : packed;
#pragma GCC unroll 2
                    for (int r = 0; r < Rows; ++r) {
                        const int8_t* a = p.codes + (row + r) * p.inputs + g * p.group + j;
                        int32_t four;
                        std::memcpy(&four, a, 4);
                        acc[r][half] = dot<Bits>(acc[r][half], first, _mm256_set1_epi32(four));
                        if (Bits == 4) {
                            std::memcpy(&four, a + 4, 4);
                            acc[r][half] = dot<Bits>(acc[r][half], second, _mm256_set1_epi32(four));
                        }
                    }
                }
            for (int half = 0; half < 2; ++half) {
                __m256 weight_scale;
                if (ByGroup)
                    weight_scale = _mm256_cvtph_ps(
                        _mm_loadu_si128(reinterpret_cast<const __m128i*>(by_group + g * kTile + 8 * half)));
                for (int r = 0; r < Rows; ++r) {
                    __m256 scale = _mm256_set1_ps(p.scales[(row + r) * p.groups + g]);
                    if (ByGroup) scale = _mm256_mul_ps(scale, weight_scale);
                    sum[r][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[r][half]), scale, sum[r][half]);
                }
            }
        }
        for (int r = 0; r < Rows; ++r) {
            float values[kTile];
            for (int half = 0; half < 2; ++half) _mm256_storeu_ps(values + 8 * half, sum[r][half]);
            for (int o = 0; o < kTile && t * kTile + o < p.outputs; ++o) {
                int64_t output = t * kTile + o;
                float by_row = ByGroup ? 1.0f : static_cast<const float*>(p.weight_scale)[output];
                p.out[(row + r) * p.outputs + output] = std::fma(values[o], by_row, p.bias ? p.bias[output] : 0.0f);
            }
        }
    }
}

TARGET static void quantize_group(const float* x, int n, int group, float offset, int8_t* codes, float* scale,
                                  int32_t* start) {
    Portable::quantize_group(x, n, group, offset, codes, scale, start);
}
