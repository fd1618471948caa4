// Kernels for a CPU: products of float32 rows with weights in float16, bfloat16 or float32, which are read as they are
// stored. quant/cpu_kernels.cpp tells how the library is built and called; `variant` has the same numbers.
//
// An output is the sum of one register's lanes: lane i adds up inputs i, i + lanes, i + 2 · lanes …, in this order. So
// an output is the same bits for any number of rows, threads and blocks.

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#define X86 1
#endif

namespace {

enum Kind { FLOAT32 = 0, FLOAT16 = 1, BFLOAT16 = 2 };

template <int kind>
struct Number {
    typedef uint16_t type;
};
template <>
struct Number<FLOAT32> {
    typedef float type;
};

struct Product {
    const float* x;      // [rows, inputs]
    const void* weight;  // [outputs, inputs]
    const float* bias;   // [outputs] or null
    float* out;          // [rows, outputs]
    int64_t rows, inputs, outputs;
};

constexpr int kOutputs = 4;    // of a block
constexpr int64_t kTask = 32;  // outputs that pass by all rows while they are near

#define BODY static inline __attribute__((always_inline))

// ---- any machine ----------------------------------------------------------------------------------------------

BODY float widened(float w) { return w; }

template <int kind>
BODY float widened(uint16_t w) {
    uint32_t bits = uint32_t(w) << 16, magnitude = uint32_t(w & 0x7fff) << 13;
    float value;
    if (kind == BFLOAT16) {
        std::memcpy(&value, &bits, 4);
        return value;
    }
    std::memcpy(&value, &magnitude, 4);
    value *= 0x1p112f;  // the exponent's other bias; exact for small numbers too
    return bits >> 31 ? -value : value;
}
template <int kind>
BODY float widened(float w) {
    return w;
}

struct Portable {
    static constexpr int kLanes = 16, kRows = 1;

    template <int kind, int Rows, int Outputs>
    static void block(const Product& p, int64_t row, int64_t output) {
        typedef typename Number<kind>::type W;
        const W* w = static_cast<const W*>(p.weight) + output * p.inputs;
        const float* x = p.x + row * p.inputs;
        for (int o = 0; o < Outputs; ++o, w += p.inputs) {
            float lanes[kLanes] = {};
            int64_t k = 0;
            for (; k + kLanes <= p.inputs; k += kLanes)
                for (int i = 0; i < kLanes; ++i) lanes[i] += x[k + i] * widened<kind>(w[k + i]);
            for (int i = 0; k + i < p.inputs; ++i) lanes[i] += x[k + i] * widened<kind>(w[k + i]);
            for (int half = kLanes / 2; half; half /= 2)
                for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
            p.out[row * p.outputs + output + o] = p.bias ? lanes[0] + p.bias[output + o] : lanes[0];
        }
    }
};

#if X86

// A choice among functions by what weights are stored as.
template <int kind>
struct Kept {};

#define LANE static inline __attribute__((always_inline))

// ---- AVX2, FMA and F16C ---------------------------------------------------------------------------------------

#define TARGET __attribute__((target("avx2,fma,f16c")))

struct Avx2 {
    static constexpr int kLanes = 8, kRows = 3;
    typedef __m256 Register;

    TARGET LANE Register zero() { return _mm256_setzero_ps(); }
    TARGET LANE Register load(const float* x) { return _mm256_loadu_ps(x); }
    TARGET LANE Register multiply_add(Register a, Register b, Register c) { return _mm256_fmadd_ps(a, b, c); }
    TARGET LANE Register widened(const float* w, Kept<FLOAT32>) { return _mm256_loadu_ps(w); }
    TARGET LANE Register widened(const uint16_t* w, Kept<FLOAT16>) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w)));
    }
    TARGET LANE Register widened(const uint16_t* w, Kept<BFLOAT16>) {
        __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w)));
        return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
    }
    TARGET LANE float total(Register x) {
        __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        four = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
    }
#include "cpu_float_block.h"
};

#undef TARGET

// ---- AVX-512 --------------------------------------------------------------------------------------------------

#define TARGET __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")))

struct Avx512 {
    static constexpr int kLanes = 16, kRows = 6;
    typedef __m512 Register;

    TARGET LANE Register zero() { return _mm512_setzero_ps(); }
    TARGET LANE Register load(const float* x) { return _mm512_loadu_ps(x); }
    TARGET LANE Register multiply_add(Register a, Register b, Register c) { return _mm512_fmadd_ps(a, b, c); }
    TARGET LANE Register widened(const float* w, Kept<FLOAT32>) { return _mm512_loadu_ps(w); }
    TARGET LANE Register widened(const uint16_t* w, Kept<FLOAT16>) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)));
    }
    TARGET LANE Register widened(const uint16_t* w, Kept<BFLOAT16>) {
        __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)));
        return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
    }
    TARGET LANE float total(Register x) {
        __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
        return Avx2::total(eight);
    }
#include "cpu_float_block.h"
};

#undef TARGET

#endif  // X86

// ---- all variants ---------------------------------------------------------------------------------------------

template <class Variant, int kind, int Outputs>
void blocks(const Product& p, int64_t row, int64_t rows, int64_t output) {
    constexpr int most = Variant::kRows;
    switch (rows) {
        case 1: return Variant::template block<kind, 1, Outputs>(p, row, output);
        case 2: return Variant::template block<kind, std::min(2, most), Outputs>(p, row, output);
        case 3: return Variant::template block<kind, std::min(3, most), Outputs>(p, row, output);
        case 4: return Variant::template block<kind, std::min(4, most), Outputs>(p, row, output);
        case 5: return Variant::template block<kind, std::min(5, most), Outputs>(p, row, output);
        default: return Variant::template block<kind, most, Outputs>(p, row, output);
    }
}

template <class Variant, int kind>
void product(const Product& p, int threads) {
    const int64_t tasks = (p.outputs + kTask - 1) / kTask;
    // Long runs first, then short ones to whichever thread is free: on a shared machine equal shares do not end
    // together.
#pragma omp parallel for num_threads(threads) schedule(guided) if (threads > 1)
    for (int64_t task = 0; task < tasks; ++task) {
        const int64_t from = task * kTask, to = std::min(from + kTask, p.outputs);
        for (int64_t row = 0; row < p.rows; row += Variant::kRows) {
            const int64_t rows = std::min<int64_t>(Variant::kRows, p.rows - row);
            int64_t output = from;
            for (; output + kOutputs <= to; output += kOutputs) blocks<Variant, kind, kOutputs>(p, row, rows, output);
            for (; output < to; ++output) blocks<Variant, kind, 1>(p, row, rows, output);
        }
    }
}

template <class Variant>
void linear(int kind, const Product& p, int threads) {
    switch (kind) {
        case FLOAT16: return product<Variant, FLOAT16>(p, threads);
        case BFLOAT16: return product<Variant, BFLOAT16>(p, threads);
        default: return product<Variant, FLOAT32>(p, threads);
    }
}

}  // namespace

extern "C" {

// `variant` is one that glm_infill_supports, with numbers as there: 0 any machine, 1 and 2 with AVX2, 3 with AVX-512.
void glm_infill_float_linear(int variant, int kind, const float* x, int64_t rows, int64_t inputs, const void* weight,
                             const float* bias, float* out, int64_t outputs, int threads) {
    const Product p{x, weight, bias, out, rows, inputs, outputs};
#if X86
    if (variant == 3) return linear<Avx512>(kind, p, threads);
    if (variant) return linear<Avx2>(kind, p, threads);
#endif
    linear<Portable>(kind, p, threads);
}

}  // extern "C"
