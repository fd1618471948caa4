// Kernels for a CPU: products of int8 activations with int4 or int8 weights, low-rank products of single rows,
// attention over cache blocks, GELU, draws of tokens.
//
// C interface, no headers of torch: quant/cpu.py calls it through ctypes. Every function is compiled once for each
// instruction set and chosen by `variant`. OpenMP symbols are left unresolved on purpose, see quant/cpu.py.
//
// Weights lie in tiles of 16 outputs. 64 bytes hold 16 outputs × 8 inputs of int4 (low nibbles: inputs 0-3, high
// nibbles: inputs 4-7) or 16 outputs × 4 inputs of int8, as unsigned numbers: code + 8, or code + 128. What the offset
// adds to a sum is known from the activations alone and subtracted before the sum begins ("start").
//
// Activations come in groups of `group` inputs with one scale each. Integer sums run over one group, float sums over
// the groups in ascending order: an output is the same bits for any number of rows, threads and blocks.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#define X86 1
#endif

namespace {

constexpr int kTile = 16;       // outputs of a tile
constexpr int kMaxRows = 8;     // activation rows that share one pass over a tile
constexpr int64_t kCache = 1024 * 1024;  // bytes of activations kept near while all tiles pass by

struct Product {
    const int8_t* codes;    // [rows, inputs]
    const float* scales;    // [rows, groups]
    const int32_t* starts;  // [rows, groups]: -offset × sum of the group's codes
    int16_t* wide;          // [rows, inputs]: the codes in 16 bits, for a variant that takes them so
    int64_t rows, inputs, groups;
    int group;              // inputs a group
    const uint8_t* weight;  // [tiles, inputs / 8, 16, 4] int4 pairs, or [tiles, inputs / 4, 16, 4]
    const void* weight_scale;  // by group: float16 [tiles, groups, 16]; by row: float32 [tiles, 16]
    const float* bias;      // [outputs] or null
    float* out;             // [rows, outputs]
    int64_t outputs;
};

// New rows of sequences over cached keys and values. Row r sees its sequence's slots 0 … context - 1 and first … last.
struct Attention {
    const float* query;         // [rows, heads, size]
    const void* keys;           // [slots, heads, size]: floats, or int8 codes
    const void* values;         // likewise
    const float* key_scales;    // [slots, heads] where they are codes
    const float* value_scales;  // likewise
    float* out;                 // like query
    const int64_t* row;         // [rows, 4]: where its blocks begin in `blocks`, context, first, last
    const int64_t* blocks;
    int64_t rows, heads, size, block_size, num_blocks, slots;  // num_blocks: the length of `blocks`

    int64_t seen(int64_t r) const { return row[4 * r + 1] + std::max<int64_t>(row[4 * r + 3] - row[4 * r + 2] + 1, 0); }

    // Whether every row sees something, and nothing outside its blocks and the cache.
    bool valid() const {
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t *info = row + 4 * r, last = std::max(info[1] - 1, info[3] >= info[2] ? info[3] : 0);
            const int64_t used = last / block_size + 1;
            if (info[0] < 0 || info[1] < 0 || info[2] < 0 || seen(r) < 1 || used > num_blocks - info[0]) return false;
            for (int64_t b = info[0]; b < info[0] + used; ++b)
                if (blocks[b] < 0 || blocks[b] >= slots / block_size) return false;
        }
        return true;
    }
};

// Low-rank products: out[row] += up · (down · x[row]), each row by the piece that its entry names.
struct LowRank {
    const float* x;              // [rows, inputs]
    float* out;                  // [rows, outputs]
    const int64_t* entry;        // [entries, 2]: a row and its piece
    const float* const* down;    // of each piece [rank, inputs]
    const float* const* up;      // of each piece [rank, width]
    const int64_t* piece;        // [pieces, 3]: rank, first output, width
    float* hidden;               // [entries, stride]
    int64_t rows, inputs, outputs, entries, pieces, stride;

    // Whether every entry is there, and every piece within the outputs and `hidden`.
    bool valid() const {
        for (int64_t e = 0; e < entries; ++e)
            if (entry[2 * e] < 0 || entry[2 * e] >= rows || entry[2 * e + 1] < 0 || entry[2 * e + 1] >= pieces)
                return false;
        for (int64_t n = 0; n < pieces; ++n) {
            const int64_t* info = piece + 3 * n;
            if (info[0] < 1 || info[0] > stride || info[1] < 0 || info[2] < 0 || info[2] > outputs - info[1])
                return false;
        }
        return true;
    }
};

// A draw by weights exp(sharpness · (score + bar − the best)), of what truncation leaves (engine/jobs/sampler.py).
struct Draw {
    const float* scores;  // [count]
    const float* bar;     // [count]: 0, or −∞ for what is never drawn
    int64_t count;
    float sharpness;      // one over the temperature
    int64_t limit;        // how many stay at most
    double top_p, min_p;
    uint64_t state;       // of the random numbers
};

constexpr int64_t kChunk = 512;  // weights that are summed before one is looked for among them

constexpr int kRanks = 4;            // numbers of a low-rank row that are computed side by side
constexpr int64_t kOutputs = 2048;   // outputs of a task
constexpr int64_t kAhead = 512;      // numbers that are fetched ahead

constexpr int kSlots = 4;     // whose values are read side by side

// 64 bytes of keys or values are one register of floats, or four of int8 codes.
template <class Number>
constexpr int kParts = 4 / sizeof(Number);

// Heads of a task: with 128 numbers each, a page of every slot, which is read fastest; fewer where tasks are few.
constexpr int64_t kFewHeads = 8;
template <class Number>
constexpr int64_t kHeads = kFewHeads * kParts<Number>;

// Sixteen floats, in whatever registers the surrounding function may use.
typedef float Floats __attribute__((vector_size(64), aligned(4)));
typedef int32_t Ints __attribute__((vector_size(64), aligned(4)));
#define BODY static inline __attribute__((always_inline))

BODY void exponential(Floats& x) {
    // e^x = 2^k · e^r with |r| <= ln 2 / 2, and a polynomial of degree 7 for e^r; relative error below 2e-7.
    const Floats low = Floats{} - 87.0f, high = Floats{} + 88.0f;
    x = x < low ? low : x;  // NaN stays
    x = x > high ? high : x;
    Floats shifted = x * 1.44269504f + 12582912.0f;  // rounds to the nearest integer, in the low bits
    Ints k = (Ints)shifted - 0x4b400000;
    Floats whole = shifted - 12582912.0f;
    Floats r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    Floats y = r * 1.9875691e-4f + 1.3981999e-3f;
    y = y * r + 8.3334519e-3f;
    y = y * r + 4.1665796e-2f;
    y = y * r + 1.6666666e-1f;
    y = y * r + 0.5f;
    y = y * r * r + r + 1.0f;
    x = y * (Floats)((k + 127) << 23);
}

BODY float total(const Floats& lanes) {
    Floats x = lanes;
    x += __builtin_shuffle(x, Ints{8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7});
    x += __builtin_shuffle(x, Ints{4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11});
    x += __builtin_shuffle(x, Ints{2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13});
    return x[0] + x[1];
}

// Of four registers of codes, lane i of register n is number 4 · i + n, which takes two shifts. `ordered` brings other
// numbers into this order, `original` back.
BODY Floats part(const float* x, int) { return *(const Floats*)x; }
BODY Floats part(const int8_t* x, int n) {
    return __builtin_convertvector(*(const Ints*)x << (24 - 8 * n) >> 24, Floats);
}

template <int Parts>
BODY void ordered(const float* from, int64_t size, float* to) {
    int64_t i = 0;
    for (; i + 16 * Parts <= size; i += 16 * Parts)
        for (int n = 0; n < Parts; ++n)
            for (int lane = 0; lane < 16; ++lane) to[i + 16 * n + lane] = from[i + Parts * lane + n];
    for (; i < size; ++i) to[i] = from[i];
}

template <int Parts>
BODY void original(const float* from, int64_t size, float factor, float* to) {
    int64_t i = 0;
    for (; i + 16 * Parts <= size; i += 16 * Parts)
        for (int n = 0; n < Parts; ++n)
            for (int lane = 0; lane < 16; ++lane) to[i + Parts * lane + n] = from[i + 16 * n + lane] * factor;
    for (; i < size; ++i) to[i] = from[i] * factor;
}

template <class Number>
BODY float dot(const float* a, const Number* b, int64_t size) {
    constexpr int kStep = 16 * kParts<Number>;
    Floats sum = {};
    int64_t i = 0;
    for (; i + kStep <= size; i += kStep)
        for (int n = 0; n < kParts<Number>; ++n) sum += *(const Floats*)(a + i + 16 * n) * part(b + i, n);
    float rest = total(sum);
    for (; i < size; ++i) rest += a[i] * b[i];
    return rest;
}

// Adds the values of some slots, weighted, to the output: in the slots' order, whatever their number.
template <int Slots, class Number>
BODY void mix(const float* weight, const Number* const* value, int64_t first, int64_t size, float* out) {
    constexpr int kStep = 16 * kParts<Number>;
    int64_t i = 0;
    for (; i + kStep <= size; i += kStep)
        for (int n = 0; n < kParts<Number>; ++n) {
            Floats sum = *(const Floats*)(out + i + 16 * n);
            for (int k = 0; k < Slots; ++k) sum += weight[k] * part(value[k] + first + i, n);
            *(Floats*)(out + i + 16 * n) = sum;
        }
    for (; i < size; ++i)
        for (int k = 0; k < Slots; ++k) out[i] += weight[k] * value[k][first + i];
}

// Heads `from` … `to` - 1 of a row. `scratch` has room for `stride` scores, a query and an output of each.
template <class Number>
BODY void attend(const Attention& p, int64_t row, int64_t from, int64_t to, float* scratch, int64_t stride) {
    constexpr bool kScaled = sizeof(Number) == 1;
    constexpr int kOrder = kParts<Number>;
    const Number *keys = static_cast<const Number*>(p.keys), *values = static_cast<const Number*>(p.values);
    const int64_t* info = p.row + 4 * row;
    const int64_t *blocks = p.blocks + info[0], context = info[1], first = info[2];
    const int64_t seen = p.seen(row), step = p.heads * p.size, count = to - from;
    float *scores = scratch, *query = scratch + count * stride, *out = query + count * p.size;
    const float factor = 1.0f / std::sqrt(float(p.size));
    auto place = [&](int64_t j) {
        int64_t slot = j < context ? j : first + j - context;
        return blocks[slot / p.block_size] * p.block_size + slot % p.block_size;
    };
    for (int64_t h = 0; h < count; ++h)
        ordered<kOrder>(p.query + row * step + (from + h) * p.size, p.size, query + h * p.size);
    for (int64_t j = 0; j < seen; ++j) {
        const int64_t slot = place(j);
        const Number* key = keys + slot * step + from * p.size;
        for (int64_t h = 0; h < count; ++h) {
            float score = dot(query + h * p.size, key + h * p.size, p.size) * factor;
            scores[h * stride + j] = kScaled ? score * p.key_scales[slot * p.heads + from + h] : score;
        }
    }
    float inverse[kHeads<Number>];
    for (int64_t h = 0; h < count; ++h) {
        float* score = scores + h * stride;
        float most = score[0];
        for (int64_t j = 1; j < seen; ++j) most = score[j] > most ? score[j] : most;
        for (int64_t j = seen; j < stride; ++j) score[j] = -INFINITY;
        Floats sum = {};
        for (int64_t j = 0; j < seen; j += 16) {
            Floats x = *(const Floats*)(score + j) - most;
            exponential(x);
            for (int64_t i = seen - j; i < 16; ++i) x[i] = 0.0f;
            *(Floats*)(score + j) = x;
            sum += x;
        }
        inverse[h] = 1.0f / total(sum);
    }
    std::memset(out, 0, count * p.size * sizeof(float));
    if (kScaled)
        for (int64_t j = 0; j < seen; ++j) {
            const float* scale = p.value_scales + place(j) * p.heads + from;
            for (int64_t h = 0; h < count; ++h) scores[h * stride + j] *= scale[h];
        }
    auto value_of = [&](int64_t j) { return values + place(j) * step + from * p.size; };
    int64_t j = 0;
    for (; j + kSlots <= seen; j += kSlots) {
        const Number* value[kSlots];
        for (int k = 0; k < kSlots; ++k) value[k] = value_of(j + k);
        for (int64_t h = 0; h < count; ++h)
            mix<kSlots>(scores + h * stride + j, value, h * p.size, p.size, out + h * p.size);
    }
    for (; j < seen; ++j) {
        const Number* value = value_of(j);
        for (int64_t h = 0; h < count; ++h)
            mix<1>(scores + h * stride + j, &value, h * p.size, p.size, out + h * p.size);
    }
    for (int64_t h = 0; h < count; ++h)
        original<kOrder>(out + h * p.size, p.size, inverse[h], p.out + row * step + (from + h) * p.size);
}

// Up to `kRanks` numbers of an entry's low-rank row, from number `first` on.
BODY void reduce(const LowRank& p, int64_t entry, int64_t first) {
    const int64_t row = p.entry[2 * entry], n = p.entry[2 * entry + 1], rank = p.piece[3 * n];
    const float *x = p.x + row * p.inputs, *down = p.down[n] + first * p.inputs;
    float* hidden = p.hidden + entry * p.stride + first;
    if (first + kRanks > rank) {
        for (int64_t k = 0; k < rank - first; ++k) hidden[k] = dot(x, down + k * p.inputs, p.inputs);
        return;
    }
    Floats sum[kRanks] = {};
    int64_t i = 0;
    for (; i + 16 <= p.inputs; i += 16)
        for (int k = 0; k < kRanks; ++k) {
            __builtin_prefetch(down + k * p.inputs + i + kAhead);
            sum[k] += *(const Floats*)(x + i) * *(const Floats*)(down + k * p.inputs + i);
        }
    for (int k = 0; k < kRanks; ++k) {
        float rest = total(sum[k]);
        for (int64_t j = i; j < p.inputs; ++j) rest += x[j] * down[k * p.inputs + j];
        hidden[k] = rest;
    }
}

// Adds to some outputs of an entry's row, of its piece's those from `first` on.
BODY void expand(const LowRank& p, int64_t entry, int64_t first) {
    const int64_t row = p.entry[2 * entry], n = p.entry[2 * entry + 1];
    const int64_t rank = p.piece[3 * n], width = p.piece[3 * n + 2], count = std::min(width - first, kOutputs);
    const float *hidden = p.hidden + entry * p.stride, *up = p.up[n];
    float* out = p.out + row * p.outputs + p.piece[3 * n + 1] + first;
    int64_t k = 0;
    for (; k + kRanks <= rank; k += kRanks) {
        const float* lines[kRanks];
        for (int j = 0; j < kRanks; ++j) lines[j] = up + (k + j) * width;
        mix<kRanks>(hidden + k, lines, first, count, out);
    }
    for (; k < rank; ++k) {
        const float* line = up + k * width;
        mix<1>(hidden + k, &line, first, count, out);
    }
}

// x · (1 + tanh(√(2/π)(x + 0.044715 x³))) / 2 = x / (1 + e^(-2√(2/π)(x + 0.044715 x³)))
BODY void gelu16(const float* x, float* y, int64_t count) {
    Floats v = {};
    std::memcpy(&v, x, count * sizeof(float));
    Floats power = v * (v * v * -0.0713548162726f - 1.59576912161f);
    exponential(power);
    v = v / (power + 1.0f);
    std::memcpy(y, &v, count * sizeof(float));
}

BODY void gelu(const float* x, float* y, int64_t count) {
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) gelu16(x + i, y + i, 16);
    if (i < count) gelu16(x + i, y + i, count - i);
}

BODY double uniform(uint64_t& state) {  // splitmix64
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return double((z ^ z >> 31) >> 11) * 0x1p-53;
}

// Weights of whole chunks, filled up with zeros, and the sum of each; gives the sum of all.
BODY double weigh(const Draw& d, float* weights, double* sums, int64_t chunks) {
    const int64_t whole = d.count / 16 * 16;
    float tail[16];  // what is behind the last whole register
    for (int lane = 0; lane < 16; ++lane)
        tail[lane] = whole + lane < d.count ? d.scores[whole + lane] + d.bar[whole + lane] : -INFINITY;
    Floats most = *(const Floats*)tail;
    for (int64_t i = 0; i < whole; i += 16) {
        const Floats x = *(const Floats*)(d.scores + i) + *(const Floats*)(d.bar + i);
        most = x > most ? x : most;
    }
    float best = most[0];
    for (int lane = 1; lane < 16; ++lane) best = most[lane] > best ? most[lane] : best;
    double all = 0;
    for (int64_t c = 0; c < chunks; ++c) {
        Floats sum = {};
        for (int64_t i = c * kChunk; i < (c + 1) * kChunk; i += 16) {
            Floats x = Floats{} - INFINITY;
            if (i < whole)
                x = *(const Floats*)(d.scores + i) + *(const Floats*)(d.bar + i);
            else if (i == whole)
                x = *(const Floats*)tail;
            x = (x - best) * d.sharpness;
            Floats y = x;
            exponential(y);
            y = x > -87.0f ? y : Floats{};
            *(Floats*)(weights + i) = y;
            sum += y;
        }
        all += sums[c] = total(sum);
    }
    return all;
}

struct Before {
    int64_t count;
    double sum;
};

// What comes before weight number `at`, the larger ones and then the equal ones with a smaller number, and its sum in
// each chunk. With `Keep` all else is set to zero.
template <bool Keep>
BODY Before before(float* weights, double* sums, int64_t chunks, int64_t at) {
    const float edge = weights[at];
    Before all{};
    for (int64_t c = 0; c < chunks; ++c) {
        Floats sum = {};
        Ints negative = {};
        for (int64_t i = c * kChunk; i < (c + 1) * kChunk; i += 16) {
            const Floats x = *(const Floats*)(weights + i);
            Floats kept = i < at ? (x >= edge ? x : Floats{}) : (x > edge ? x : Floats{});
            if (i <= at && at < i + 16)
                for (int lane = int(at - i); lane < 16; ++lane) kept[lane] = x[lane] > edge ? x[lane] : 0.0f;
            sum += kept;
            negative += kept > 0.0f;
            if (Keep) *(Floats*)(weights + i) = kept;
        }
        all.sum += sums[c] = total(sum);
        for (int lane = 0; lane < 16; ++lane) all.count -= negative[lane];
    }
    return all;
}

// The number in whose weight a point of all their sum lies; −1 if there is none.
BODY int64_t find(const float* weights, const double* sums, int64_t chunks, double point) {
    int64_t chunk = 0, found = -1;
    double from = 0, to = 0;  // by rounding the point may lie behind all of them; then it is the last one
    for (int64_t c = 0; c < chunks && to <= point; ++c)
        if (sums[c] > 0) chunk = c, from = to, to += sums[c];
    to = from;
    for (int64_t i = chunk * kChunk; i < (chunk + 1) * kChunk && to <= point; ++i)
        if (weights[i] > 0) found = i, to += weights[i];
    return found;
}

// One that is drawn stays if what comes before it is few enough and holds less than top_p; else only that is left, and
// another is drawn. `weights` and `sums` are scratch: whole chunks, and one number a chunk.
BODY int64_t draw(Draw d, float* weights, double* sums, int64_t chunks) {
    double all = weigh(d, weights, sums, chunks);
    const double held = d.top_p < 1 ? d.top_p * all : INFINITY;
    const bool is_whole = d.top_p >= 1 && d.limit >= d.count && d.min_p <= 0;
    for (;;) {
        const int64_t at = find(weights, sums, chunks, uniform(d.state) * all);
        if (at < 0 || is_whole) return std::max<int64_t>(at, 0);
        const Before ahead = before<false>(weights, sums, chunks, at);
        if (ahead.count < d.limit && ahead.sum < held && weights[at] >= d.min_p) return at;
        before<true>(weights, sums, chunks, at);
        all = ahead.sum;
    }
}

#define ELEMENTWISE(TARGET_)                                                                                     \
    template <class Number>                                                                                      \
    TARGET_ static void attend_row(const Attention& p, int64_t row, int64_t from, int64_t to, float* scratch,    \
                                   int64_t stride) {                                                             \
        attend<Number>(p, row, from, to, scratch, stride);                                                       \
    }                                                                                                            \
    TARGET_ static void reduce_some(const LowRank& p, int64_t entry, int64_t first) { reduce(p, entry, first); } \
    TARGET_ static void expand_some(const LowRank& p, int64_t entry, int64_t first) { expand(p, entry, first); } \
    TARGET_ static void gelu_part(const float* x, float* y, int64_t count) { gelu(x, y, count); }                \
    TARGET_ static int64_t draw_one(const Draw& d, float* weights, double* sums, int64_t chunks) {               \
        return draw(d, weights, sums, chunks);                                                                   \
    }

float half_to_float(uint16_t h) {
    uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023;
    float value;
    if (exponent == 0) {
        value = std::ldexp(float(mantissa), -24);
    } else {
        uint32_t bits = ((exponent == 31 ? 255 : exponent + 112) << 23) | (mantissa << 13);
        std::memcpy(&value, &bits, 4);
    }
    return sign ? -value : value;
}

// ---- portable -------------------------------------------------------------------------------------------------

struct Portable {
    ELEMENTWISE()
    static constexpr int kTiles = 1;
    static constexpr bool kWide = false;

    template <int Bits, bool ByGroup, int Rows, int Tiles>
    static void tile(const Product& p, int64_t row, int64_t t) {
        constexpr int kInputs = Bits == 4 ? 8 : 4;
        const uint8_t* w = p.weight + t * (p.inputs / kInputs) * 64;
        float sum[Rows][kTile] = {};
        for (int64_t g = 0; g < p.groups; ++g) {
            int32_t acc[Rows][kTile];
            for (int r = 0; r < Rows; ++r)
                for (int o = 0; o < kTile; ++o) acc[r][o] = p.starts[(row + r) * p.groups + g];
            for (int j = 0; j < p.group; j += kInputs, w += 64)
                for (int r = 0; r < Rows; ++r) {
                    const int8_t* a = p.codes + (row + r) * p.inputs + g * p.group + j;
                    for (int o = 0; o < kTile; ++o)
                        for (int i = 0; i < 4; ++i) {
                            uint8_t b = w[4 * o + i];
                            if (Bits == 4)
                                acc[r][o] += (b & 15) * a[i] + (b >> 4) * a[i + 4];
                            else
                                acc[r][o] += b * a[i];
                        }
                }
            for (int r = 0; r < Rows; ++r) {
                float scale = p.scales[(row + r) * p.groups + g];
                for (int o = 0; o < kTile; ++o) {
                    float s = scale;
                    if (ByGroup)
                        s *=
                            half_to_float(static_cast<const uint16_t*>(p.weight_scale)[(t * p.groups + g) * kTile + o]);
                    sum[r][o] += float(acc[r][o]) * s;
                }
            }
        }
        for (int r = 0; r < Rows; ++r)
            for (int o = 0; o < kTile && t * kTile + o < p.outputs; ++o) {
                float value = sum[r][o];
                if (!ByGroup) value *= static_cast<const float*>(p.weight_scale)[t * kTile + o];
                int64_t output = t * kTile + o;
                p.out[(row + r) * p.outputs + output] = value + (p.bias ? p.bias[output] : 0.0f);
            }
    }

    static void quantize_group(const float* x, int n, int group, float offset, int8_t* codes, float* scale,
                               int32_t* start) {
        float most = 0.0f;
        bool finite = true;
        for (int i = 0; i < n; ++i) {
            float a = std::fabs(x[i]);
            finite &= a <= 3.4028234e38f;
            most = a > most ? a : most;
        }
        float inverse = most > 0.0f ? 127.0f / most : 0.0f;
        if (!finite || std::isinf(inverse)) inverse = 0.0f;
        int32_t sum = 0;
        for (int i = 0; i < group; ++i) {
            int32_t code = i < n && inverse != 0.0f ? int32_t(std::nearbyint(x[i] * inverse)) : 0;
            codes[i] = int8_t(code);
            sum += code;
        }
        *scale = finite ? most / 127.0f : NAN;
        *start = -int32_t(offset) * sum;
    }
};

#if X86

// ---- AVX2, with or without VNNI -------------------------------------------------------------------------------

#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define AVXVNNI __attribute__((target("avx2,fma,f16c,avxvnni")))

// Without VNNI products of int4 weights are added up in pairs: 16 bits hold 15 · 127 · 2 eight times. Products of two
// int8 numbers they hold once, so that int8 weights and rows are widened to 16 bits, rows beforehand.
struct Avx2 {
    ELEMENTWISE(AVX2)
    static constexpr int kTiles = 1;
    static constexpr bool kWide = true;
    template <int Bits>
    static constexpr int planes = 2;  // low and high nibbles, or even and odd bytes
    template <int Bits>
    static constexpr bool kShort = Bits == 4;

    template <int Bits>
    static const int8_t* rows(const Product& p) {
        return Bits == 4 ? p.codes : reinterpret_cast<const int8_t*>(p.wide);
    }

    template <int Bits>
    AVX2 static inline __m256i plane(__m256i packed, int n) {
        if (Bits == 4) return _mm256_and_si256(n ? _mm256_srli_epi16(packed, 4) : packed, _mm256_set1_epi8(15));
        return n ? _mm256_srli_epi16(packed, 8) : _mm256_and_si256(packed, _mm256_set1_epi16(255));
    }

    template <int Bits>
    AVX2 static inline __m256i add(__m256i sum, __m256i w, __m256i a) {
        if (Bits == 4) return _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, a));
        return _mm256_add_epi32(sum, _mm256_madd_epi16(w, a));
    }

    // Codes in 16 bits as the planes of int8 weights face them: of four, the first and third before the others.
    AVX2 static void widen(const int8_t* codes, int count, int16_t* wide) {
        const __m128i order = _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
        for (int i = 0; i < count; i += 16) {
            const __m128i some = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(wide + i),
                                _mm256_cvtepi8_epi16(_mm_shuffle_epi8(some, order)));
        }
    }
#define TARGET AVX2
#include "cpu_kernels_avx2.h"
#undef TARGET
};

struct AvxVnni {
    ELEMENTWISE(AVXVNNI)
    static constexpr int kTiles = 1;
    static constexpr bool kWide = false;
    template <int Bits>
    static constexpr int planes = Bits == 4 ? 2 : 1;
    template <int Bits>
    static constexpr bool kShort = false;

    template <int Bits>
    static const int8_t* rows(const Product& p) {
        return p.codes;
    }

    template <int Bits>
    AVXVNNI static inline __m256i plane(__m256i packed, int n) {
        if (Bits == 8) return packed;
        return _mm256_and_si256(n ? _mm256_srli_epi16(packed, 4) : packed, _mm256_set1_epi8(15));
    }

    template <int Bits>
    AVXVNNI static inline __m256i add(__m256i sum, __m256i w, __m256i a) {
        return _mm256_dpbusd_avx_epi32(sum, w, a);
    }
#define TARGET AVXVNNI
#include "cpu_kernels_avx2.h"
#undef TARGET
};

// ---- AVX-512 VNNI ---------------------------------------------------------------------------------------------

#define AVX512 __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))

struct Avx512 {
    ELEMENTWISE(AVX512)

    static constexpr int kTiles = 2;  // the most at once
    static constexpr bool kWide = false;

    // One accumulator gives a chain of dependent sums: few rows take several of them and add them, which is exact, or
    // two tiles at once.
    template <int Bits, bool ByGroup, int Rows, int Tiles>
    AVX512 static void tile(const Product& p, int64_t row, int64_t t) {
        constexpr int kInputs = Bits == 4 ? 8 : 4;
        constexpr int kSplit = Tiles == 2 ? 1 : Rows == 1 ? 4 : Rows <= 3 ? 2 : 1;
        const __m512i low = _mm512_set1_epi8(15);
        const int64_t tile_bytes = p.inputs / kInputs * 64;
        const uint8_t* w = p.weight + t * tile_bytes;
        const uint16_t* by_group = static_cast<const uint16_t*>(p.weight_scale) + t * p.groups * kTile;
        const int8_t* a = p.codes + row * p.inputs;
        const float* scales = p.scales + row * p.groups;
        const int32_t* starts = p.starts + row * p.groups;
        __m512 sum[Rows][Tiles];
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
            for (int n = 0; n < Tiles; ++n) sum[r][n] = _mm512_setzero_ps();
        for (int64_t g = 0; g < p.groups; ++g) {
            __m512i acc[Rows][Tiles][kSplit];
#pragma GCC unroll 8
            for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
                for (int n = 0; n < Tiles; ++n) {
                    acc[r][n][0] = _mm512_set1_epi32(starts[r * p.groups + g]);
#pragma GCC unroll 4
                    for (int s = 1; s < kSplit; ++s) acc[r][n][s] = _mm512_setzero_si512();
                }
            for (int j = 0; j < p.group; j += 2 * kInputs, w += 128) {
#pragma GCC unroll 2
                for (int half = 0; half < 2; ++half) {
                    __m512i first[Tiles], second[Tiles];
#pragma GCC unroll 2
                    for (int n = 0; n < Tiles; ++n) {
                        __m512i packed = _mm512_loadu_si512(w + n * tile_bytes + 64 * half);
                        _mm_prefetch(reinterpret_cast<const char*>(w + n * tile_bytes + 64 * half + 4096), _MM_HINT_T0);
                        first[n] = Bits == 4 ? _mm512_and_si512(packed, low) : packed;
                        if (Bits == 4) second[n] = _mm512_and_si512(_mm512_srli_epi16(packed, 4), low);
                    }
#pragma GCC unroll 8
                    for (int r = 0; r < Rows; ++r) {
                        const int8_t* at = a + r * p.inputs + j + kInputs * half;
                        constexpr int kLast = kSplit - 1;
                        int even = (Bits == 4 ? 2 * half : half) & kLast, odd = (2 * half + 1) & kLast;
                        __m512i four = broadcast(at);
#pragma GCC unroll 2
                        for (int n = 0; n < Tiles; ++n)
                            acc[r][n][even] = _mm512_dpbusd_epi32(acc[r][n][even], first[n], four);
                        if (Bits == 4) {
                            four = broadcast(at + 4);
#pragma GCC unroll 2
                            for (int n = 0; n < Tiles; ++n)
                                acc[r][n][odd] = _mm512_dpbusd_epi32(acc[r][n][odd], second[n], four);
                        }
                    }
                }
            }
            a += p.group;
            __m512 weight_scale[Tiles];
#pragma GCC unroll 2
            for (int n = 0; n < Tiles; ++n)
                if (ByGroup)
                    weight_scale[n] = _mm512_cvtph_ps(
                        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(by_group + (n * p.groups + g) * kTile)));
#pragma GCC unroll 8
            for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
                for (int n = 0; n < Tiles; ++n) {
#pragma GCC unroll 4
                    for (int s = 1; s < kSplit; ++s) acc[r][n][0] = _mm512_add_epi32(acc[r][n][0], acc[r][n][s]);
                    __m512 scale = _mm512_set1_ps(scales[r * p.groups + g]);
                    if (ByGroup) scale = _mm512_mul_ps(scale, weight_scale[n]);
                    sum[r][n] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[r][n][0]), scale, sum[r][n]);
                }
        }
#pragma GCC unroll 2
        for (int n = 0; n < Tiles; ++n) {
            int64_t first = (t + n) * kTile;
            __mmask16 mask = p.outputs - first >= kTile ? 0xffff : __mmask16((1u << (p.outputs - first)) - 1);
            __m512 bias = p.bias ? _mm512_maskz_loadu_ps(mask, p.bias + first) : _mm512_setzero_ps();
            __m512 by_row = _mm512_set1_ps(1.0f);
            if (!ByGroup) by_row = _mm512_loadu_ps(static_cast<const float*>(p.weight_scale) + first);
#pragma GCC unroll 8
            for (int r = 0; r < Rows; ++r)
                _mm512_mask_storeu_ps(p.out + (row + r) * p.outputs + first, mask,
                                      _mm512_fmadd_ps(sum[r][n], by_row, bias));
        }
    }

    AVX512 static inline __m512i broadcast(const int8_t* at) {
        int32_t four;
        std::memcpy(&four, at, 4);
        return _mm512_set1_epi32(four);
    }

    AVX512 static void quantize_group(const float* x, int n, int group, float offset, int8_t* codes, float* scale,
                                      int32_t* start) {
        __m512 most = _mm512_setzero_ps();
        __mmask16 bad = 0;
        const __m512 largest = _mm512_set1_ps(3.4028234e38f);
        for (int i = 0; i < n; i += 16) {
            __m512 v = _mm512_abs_ps(_mm512_maskz_loadu_ps(mask(n - i), x + i));
            bad |= _mm512_cmp_ps_mask(v, largest, _CMP_NLE_UQ);
            most = _mm512_max_ps(most, v);
        }
        float peak = _mm512_reduce_max_ps(most);
        float inverse = peak > 0.0f ? 127.0f / peak : 0.0f;
        if (bad || std::isinf(inverse)) inverse = 0.0f;
        const __m512 factor = _mm512_set1_ps(inverse);
        __m512i sum = _mm512_setzero_si512();
        for (int i = 0; i < group; i += 16) {
            __m512i code = _mm512_setzero_si512();
            if (i < n && inverse != 0.0f)
                code = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(mask(n - i), x + i), factor));
            sum = _mm512_add_epi32(sum, code);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), _mm512_cvtepi32_epi8(code));
        }
        *scale = bad ? NAN : peak / 127.0f;
        *start = -int32_t(offset) * _mm512_reduce_add_epi32(sum);
    }

    AVX512 static inline __mmask16 mask(int left) {
        return left >= 16 ? 0xffff : __mmask16((1u << (left > 0 ? left : 0)) - 1);
    }
};

#endif  // X86

// ---- all variants ---------------------------------------------------------------------------------------------

template <class Variant, int Bits, bool ByGroup, int Tiles = 1>
void block(const Product& p, int64_t row, int64_t rows, int64_t t) {
    switch (rows) {
        case 1: return Variant::template tile<Bits, ByGroup, 1, 1>(p, row, t);
        case 2: return Variant::template tile<Bits, ByGroup, 2, 1>(p, row, t);
        case 3: return Variant::template tile<Bits, ByGroup, 3, 1>(p, row, t);
        case 4: return Variant::template tile<Bits, ByGroup, 4, Tiles>(p, row, t);
        case 5: return Variant::template tile<Bits, ByGroup, 5, Tiles>(p, row, t);
        case 6: return Variant::template tile<Bits, ByGroup, 6, Tiles>(p, row, t);
        case 7: return Variant::template tile<Bits, ByGroup, 7, 1>(p, row, t);
        default: return Variant::template tile<Bits, ByGroup, 8, 1>(p, row, t);
    }
}

// Every thread of a parallel region calls this with all rows' activations ready; chunks of tiles are shared out.
template <class Variant, int Bits, bool ByGroup>
void product(const Product& p) {
    const int64_t tiles = (p.outputs + kTile - 1) / kTile;
    if constexpr (Variant::kTiles == 2 && Bits == 4)
        if (p.rows >= 4 && p.rows <= 6) {  // as many rows as leave registers for two tiles, and gain by them
#pragma omp for schedule(guided) nowait
            for (int64_t t = 0; t < tiles; t += 2)
                if (t + 1 < tiles)
                    block<Variant, Bits, ByGroup, 2>(p, 0, p.rows, t);
                else
                    block<Variant, Bits, ByGroup>(p, 0, p.rows, t);
            return;
        }
    int64_t near = kCache / p.inputs / kMaxRows * kMaxRows;
    near = near < kMaxRows ? kMaxRows : near;
    for (int64_t from = 0; from < p.rows; from += near) {
        const int64_t to = from + near < p.rows ? from + near : p.rows;
        // Long runs of tiles first, which memory delivers fastest, then short ones to whichever thread is free: on a
        // shared machine equal shares do not end together.
#pragma omp for schedule(guided) nowait
        for (int64_t t = 0; t < tiles; ++t)
            for (int64_t row = from; row < to; row += kMaxRows)
                block<Variant, Bits, ByGroup>(p, row, to - row < kMaxRows ? to - row : kMaxRows, t);
    }
}

struct Source {
    const float* x;  // [rows, features]
    int64_t features;
    float offset;  // what the weights' codes are stored with: 8 or 128
};

template <class Variant>
void quantize(const Source& source, const Product& p) {
    int8_t* codes = const_cast<int8_t*>(p.codes);
    float* scales = const_cast<float*>(p.scales);
    int32_t* starts = const_cast<int32_t*>(p.starts);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < p.rows * p.groups; ++i) {
        const int64_t row = i / p.groups, from = i % p.groups * p.group, left = source.features - from;
        Variant::quantize_group(source.x + row * source.features + from, int(left < p.group ? left : p.group), p.group,
                                source.offset, codes + i * p.group, scales + i, starts + i);
        if constexpr (Variant::kWide)
            if (p.wide) Variant::widen(codes + i * p.group, p.group, p.wide + i * p.group);
    }
}

template <class Variant>
void linear(int bits, bool by_group, const Source& source, Product& p, int threads) {
    std::unique_ptr<int16_t[]> wide;
    if (Variant::kWide && bits == 8 && p.out) wide.reset(p.wide = new int16_t[p.rows * p.inputs]);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        quantize<Variant>(source, p);
        if (p.out) {
            if (bits == 4 && by_group)
                product<Variant, 4, true>(p);
            else if (bits == 4)
                product<Variant, 4, false>(p);
            else if (by_group)
                product<Variant, 8, true>(p);
            else
                product<Variant, 8, false>(p);
        }
    }
}

template <class Variant, class Number>
void attend_all(const Attention& p, int threads) {
    const int64_t heads = p.rows < 4 * threads ? kFewHeads : kHeads<Number>;
    const int64_t groups = (p.heads + heads - 1) / heads, tasks = p.rows * groups;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<float> scratch;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < tasks; ++task) {
            const int64_t row = task / groups, from = task % groups * heads;
            const int64_t to = from + heads < p.heads ? from + heads : p.heads;
            const int64_t stride = (p.seen(row) + 15) / 16 * 16, floats = (to - from) * (stride + 2 * p.size);
            if (int64_t(scratch.size()) < floats) scratch.resize(floats);
            Variant::template attend_row<Number>(p, row, from, to, scratch.data(), stride);
        }
    }
}

template <class Variant>
int attention(const Attention& p, int threads) {
    if (!p.valid()) return 0;
    p.key_scales ? attend_all<Variant, int8_t>(p, threads) : attend_all<Variant, float>(p, threads);
    return 1;
}

template <class Variant>
int low_rank(const LowRank& p, int threads) {
    if (!p.valid()) return 0;
    const int64_t groups = (p.stride + kRanks - 1) / kRanks, chunks = (p.outputs + kOutputs - 1) / kOutputs;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(static)
        for (int64_t task = 0; task < p.entries * groups; ++task) {
            const int64_t entry = task / groups, first = task % groups * kRanks;
            if (first < p.piece[3 * p.entry[2 * entry + 1]]) Variant::reduce_some(p, entry, first);
        }
        // Chunks before entries: those of one piece, which follow each other, find its lines in the cache.
#pragma omp for schedule(static)
        for (int64_t task = 0; task < p.entries * chunks; ++task) {
            const int64_t entry = task % p.entries, first = task / p.entries * kOutputs;
            if (first < p.piece[3 * p.entry[2 * entry + 1] + 2]) Variant::expand_some(p, entry, first);
        }
    }
    return 1;
}

template <class Variant>
void gelu_all(const float* x, float* y, int64_t count, int threads) {
    const int64_t piece = 16 * 1024;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && count > piece)
    for (int64_t i = 0; i < count; i += piece) Variant::gelu_part(x + i, y + i, count - i < piece ? count - i : piece);
}

template <class Variant>
int64_t draw_one(const Draw& d) {
    static thread_local std::vector<float> weights;
    static thread_local std::vector<double> sums;
    const int64_t chunks = (d.count + kChunk - 1) / kChunk;
    if (int64_t(sums.size()) < chunks) weights.resize(chunks * kChunk), sums.resize(chunks);
    return Variant::draw_one(d, weights.data(), sums.data(), chunks);
}

}  // namespace

extern "C" {

enum { PORTABLE = 0, AVX2_ = 1, AVXVNNI_ = 2, AVX512_ = 3 };

int glm_infill_supports(int variant) {
    if (variant == PORTABLE) return 1;
#if X86
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (variant == AVX2_) return avx2;
    if (variant == AVXVNNI_) {
        unsigned a = 7, b = 0, c = 1, d = 0;
        __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
        return avx2 && (a >> 4 & 1);
    }
    if (variant == AVX512_)
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vnni");
#endif
    return 0;
}

// Calls `function<Variant>(…)` for the variant of this number.
#if X86
#define CALL(function, ...)                                   \
    switch (variant) {                                        \
        case AVX512_: return function<Avx512>(__VA_ARGS__);   \
        case AVXVNNI_: return function<AvxVnni>(__VA_ARGS__); \
        case AVX2_: return function<Avx2>(__VA_ARGS__);       \
        default: return function<Portable>(__VA_ARGS__);      \
    }
#else
#define CALL(function, ...) return function<Portable>(__VA_ARGS__)
#endif

// Quantizes x into codes, scales and starts; multiplies these (unless out is null) into out.
void glm_infill_linear(int variant, int bits, int by_group, const float* x, int64_t features, int8_t* codes,
                       float* scales, int32_t* starts, int64_t rows, int64_t inputs, int64_t groups, int group,
                       const uint8_t* weight, const void* weight_scale, const float* bias, float* out, int64_t outputs,
                       int threads) {
    Source source{x, features, bits == 4 ? 8.0f : 128.0f};
    Product p{codes, scales, starts, nullptr, rows, inputs, groups, group, weight, weight_scale, bias, out, outputs};
    CALL(linear, bits, by_group, source, p, threads);
}

// 0 and nothing done where a row would see what is not there. `slots` of keys and values, `num_blocks` of `blocks`;
// scales null: keys and values are floats.
int glm_infill_attention(int variant, const float* query, const void* keys, const void* values, const float* key_scales,
                         const float* value_scales, float* out, const int64_t* row, const int64_t* blocks, int64_t rows,
                         int64_t heads, int64_t size, int64_t block_size, int64_t num_blocks, int64_t slots,
                         int threads) {
    Attention p{query,  keys, values, key_scales, value_scales, out,        row,
                blocks, rows, heads,  size,       block_size,   num_blocks, slots};
    CALL(attention, p, threads);
}

// 0 and nothing done for an entry or a piece that is not there. Entries of one row have pieces with outputs apart.
int glm_infill_low_rank(int variant, const float* x, float* out, const int64_t* entry, const float* const* down,
                        const float* const* up, const int64_t* piece, float* hidden, int64_t rows, int64_t inputs,
                        int64_t outputs, int64_t entries, int64_t pieces, int64_t stride, int threads) {
    LowRank p{x, out, entry, down, up, piece, hidden, rows, inputs, outputs, entries, pieces, stride};
    CALL(low_rank, p, threads);
}

void glm_infill_gelu(int variant, const float* x, float* y, int64_t count, int threads) {
    CALL(gelu_all, x, y, count, threads);
}

// The number drawn of `count` scores; 0 where all of them are −∞.
int64_t glm_infill_draw(int variant, const float* scores, const float* bar, int64_t count, float sharpness,
                        int64_t limit, double top_p, double min_p, uint64_t state) {
    Draw d{scores, bar, count, sharpness, limit, top_p, min_p, state};
    CALL(draw_one, d);
}

}  // extern "C"
