// Rows × Outputs outputs: the body of both vector variants, included inside each; TARGET, Register, kLanes and what is
// done with a register differ.

template <int Rows, int Outputs, class W, int kind>
TARGET LANE void add(Register (&sum)[Rows][Outputs], const float* x, const W* w, int64_t stride, Kept<kind> kept) {
    Register rows[Rows];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) rows[r] = load(x + r * stride);
#pragma GCC unroll 4
    for (int o = 0; o < Outputs; ++o) {
        const Register weight = widened(w + o * stride, kept);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) sum[r][o] = multiply_add(rows[r], weight, sum[r][o]);
    }
}

template <int kind, int Rows, int Outputs>
TARGET static void block(const Product& p, int64_t row, int64_t output) {
    typedef typename Number<kind>::type W;
    constexpr int kLine = 64 / sizeof(W);
    const Kept<kind> kept{};
    const int64_t inputs = p.inputs;
    const W* w = static_cast<const W*>(p.weight) + output * inputs;
    const float* x = p.x + row * inputs;
    Register sum[Rows][Outputs];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int o = 0; o < Outputs; ++o) sum[r][o] = zero();
    int64_t k = 0;
    for (; k + kLine <= inputs; k += kLine) {
        // What the next block will read at this place: a weight's rows are too short for the machine to guess it.
        if (Rows <= 2)
#pragma GCC unroll 4
            for (int o = 0; o < Outputs; ++o)
                _mm_prefetch(reinterpret_cast<const char*>(w + (Outputs + o) * inputs + k), _MM_HINT_T1);
#pragma GCC unroll 4
        for (int step = 0; step < kLine; step += kLanes)
            add<Rows, Outputs>(sum, x + k + step, w + k + step, inputs, kept);
    }
    for (; k + kLanes <= inputs; k += kLanes) add<Rows, Outputs>(sum, x + k, w + k, inputs, kept);
    if (k < inputs) {
        float last_x[Rows][kLanes] = {};
        W last_w[Outputs][kLanes] = {};
        for (int r = 0; r < Rows; ++r) std::memcpy(last_x[r], x + r * inputs + k, (inputs - k) * sizeof(float));
        for (int o = 0; o < Outputs; ++o) std::memcpy(last_w[o], w + o * inputs + k, (inputs - k) * sizeof(W));
        add<Rows, Outputs>(sum, last_x[0], last_w[0], kLanes, kept);
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int o = 0; o < Outputs; ++o) {
            const float value = total(sum[r][o]);
            p.out[(row + r) * p.outputs + output + o] = p.bias ? value + p.bias[output + o] : value;
        }
}
