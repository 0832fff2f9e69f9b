// A step of the Step-1 language model on a CPU: new tokens of any number of sequences in, next-token logits out.
//
// Decoding reads every weight once per step and does little else, so it should run at the speed of memory. A step
// made of separate tensor operations does not: each operation is a call, a thread-pool barrier and a fresh read of
// its inputs. Here the whole step is one parallel region. Weights are read as they lie in the checkpoint (float32,
// bfloat16, or int8 with one scale per row). A row of a step is one token with its slot and position in the
// key-value cache, so decoding, prefill and mixtures of both are the same thing, sequences of different lengths need
// no padding, and the arithmetic of a row does not depend on which other rows share the step.
//
// N rows, C width, H query heads in G groups of R, D head width, F feed-forward width, V vocabulary, S slots,
// T tokens per slot.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <omp.h>
#include <type_traits>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int UNROLL = 2 * LANES;  // weights per inner step; every width is a multiple of it (native.py checks)
constexpr int AHEAD = 16 << 10;    // bytes to prefetch ahead into the second-level cache
constexpr int CHUNK = 16;          // matrix rows whose results are handed on together
constexpr int PIECE = 384 << 10;   // bytes of a matrix that a thread takes at a time: long enough to stream
constexpr int MAX_ROWS = 64;       // rows per step (native.py cuts longer ones)
constexpr int LINE = 16;           // floats of a cache line

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

struct bf16 {
    uint16_t bits;
};

inline float to_float(float x) { return x; }

inline float to_float(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}

inline void store(float x, float* y) { *y = x; }

inline void store(float x, bf16* y) {  // round to nearest even; activations are never NaN with finite weights
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    y->bits = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline vec load(const float* p) {
    vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline vec load(const bf16* p) {
    typedef uint16_t half __attribute__((vector_size(2 * LANES)));
    typedef uint32_t full __attribute__((vector_size(4 * LANES)));
    half h;
    std::memcpy(&h, p, sizeof h);
    return (vec)(__builtin_convertvector(h, full) << 16);
}

inline vec load(const int8_t* p) {
#ifdef __AVX512F__  // compilers do not find this one by themselves
    return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#else
    vec v;
    for (int i = 0; i < LANES; i++) v[i] = p[i];
    return v;
#endif
}

inline float sum(vec v) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)v);
#else
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) v[i] += v[i + width];
    return v[0];
#endif
}

inline float sum(ivec v) { return sum(__builtin_convertvector(v, vec)); }  // whole, the lanes may exceed an int32

// exp to within 2 ulp of float32: 2^n times a polynomial of the rest.
inline vec exponential(vec x) {
    x = x < -87.0f ? vec{} - 87.0f : x;
    x = x > 88.0f ? vec{} + 88.0f : x;
    vec n = x * 1.44269504f;
    ivec whole = __builtin_convertvector(n + (n < 0.0f ? vec{} - 0.5f : vec{} + 0.5f), ivec);
    n = __builtin_convertvector(whole, vec);
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = vec{} + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (vec)((whole + 127) << 23);
}

// Memory that begins with a cache line: a load that straddles two costs twice.
struct Free {
    void operator()(void* p) const { std::free(p); }
};
template <class T>
using Buffer = std::unique_ptr<T[], Free>;

template <class T>
Buffer<T> buffer(int64_t count) {
    return Buffer<T>((T*)std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64));
}

// ---------------------------------------------------------------- rows of a matrix times a few vectors

// What the inner loop does with UNROLL weights and as many activations; `In` is how activations are stored for it,
// `Sum` what a lane adds up.
template <class W>
struct Dot {
    typedef float In;
    typedef vec Sum;
    struct Pair {
        vec a, b;
    };
    static Pair weights(const W* p) { return {load(p), load(p + LANES)}; }
    static Pair inputs(const In* p) { return {load(p), load(p + LANES)}; }
    static void add(vec& acc, const Pair& w, const Pair& x) {
        acc += w.a * x.a;
        acc += w.b * x.b;
    }
};

#ifdef __AVX512F__
inline __m512i load_once(const void* p) {
    __m512i v = _mm512_loadu_si512(p);
    asm("" : "+v"(v));  // or the compiler loads it again for every matrix row, and loads are the limit
    return v;
}
#endif

#ifdef __AVX512BF16__
template <>
struct Dot<bf16> {
    typedef bf16 In;
    typedef vec Sum;
    static __m512bh weights(const bf16* p) { return (__m512bh)_mm512_loadu_si512(p); }
    static __m512bh inputs(const In* p) { return (__m512bh)load_once(p); }
    static void add(vec& acc, __m512bh w, __m512bh x) { acc = (vec)_mm512_dpbf16_ps((__m512)acc, w, x); }
};
#endif

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
template <>
struct Dot<int8_t> {  // whole numbers, added up exactly: `settle` sees to it that no sum leaves int32
    typedef int16_t In;
    typedef ivec Sum;
    static __m512i weights(const int8_t* p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p)); }
    static __m512i inputs(const In* p) { return load_once(p); }
    static void add(ivec& acc, __m512i w, __m512i x) { acc = (ivec)_mm512_dpwssd_epi32((__m512i)acc, w, x); }
};
#endif

// Activations as the inner loop wants them. Returns what a product with them is to be multiplied by.
template <class In>
inline float settle(const float* x, int width, In* out) {
    for (int c = 0; c < width; c++) store(x[c], out + c);
    return 1.0f;
}

// A token's activations in steps of its own: as fine as int16 allows, or, in very wide matrices, as a lane can add up.
inline float settle(const float* x, int width, int16_t* out) {
    vec peaks = {};
    for (int c = 0; c < width; c += LANES) {
        vec v = load(x + c), size = v < 0.0f ? -v : v;
        peaks = size > peaks ? size : peaks;
    }
    float peak = 1e-30f;
    for (int lane = 0; lane < LANES; lane++) peak = std::max(peak, peaks[lane]);
    const float levels = std::min(32767, INT32_MAX / (127 * (width / LANES)));
    const float inverse = levels / peak;
    for (int c = 0; c < width; c++) out[c] = int16_t(x[c] * inverse + (x[c] < 0 ? -0.5f : 0.5f));
    return peak / levels;
}

// y[i][j] = row i of w · x[j] for a tile of ROWS x COLS, added up in an order that depends on neither.
template <class W, int ROWS, int COLS>
inline void tile(const W* w, const typename Dot<W>::In* x, int width, float* y, int stride) {
    typename Dot<W>::Sum even[ROWS][COLS] = {}, odd[ROWS][COLS] = {};  // two sums: one would wait for itself
    decltype(Dot<W>::weights(w)) weights[ROWS];
    auto inner = [&](auto& acc, int k) __attribute__((always_inline)) {
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) {
            const W* p = w + int64_t(i) * width + k;
            if (ROWS > 1) __builtin_prefetch((const char*)p + AHEAD, 0, 2);
            weights[i] = Dot<W>::weights(p);
        }
#pragma GCC unroll 8
        for (int j = 0; j < COLS; j++) {
            auto inputs = Dot<W>::inputs(x + int64_t(j) * width + k);
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; i++) Dot<W>::add(acc[i][j], weights[i], inputs);
        }
    };
    int k = 0;
    for (; k + UNROLL < width; k += 2 * UNROLL) {
        inner(even, k);
        inner(odd, k + UNROLL);
    }
    if (k < width) inner(even, k);
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLS; j++) y[j * stride + i] = sum(even[i][j] + odd[i][j]);
}

// The same for any number of rows and columns: y[j * stride + i].
template <class W, int ROWS>
inline void columns(const W* w, const typename Dot<W>::In* x, int cols, int width, float* y, int stride) {
    int j = 0;
    for (; j + 4 <= cols; j += 4) tile<W, ROWS, 4>(w, x + int64_t(j) * width, width, y + int64_t(j) * stride, stride);
    for (; j + 2 <= cols; j += 2) tile<W, ROWS, 2>(w, x + int64_t(j) * width, width, y + int64_t(j) * stride, stride);
    for (; j < cols; j++) tile<W, ROWS, 1>(w, x + int64_t(j) * width, width, y + int64_t(j) * stride, stride);
}

template <class W>
inline void product(const W* w, const typename Dot<W>::In* x, int rows, int cols, int width, float* y, int stride) {
    int i = 0;
    // For one column memory is the limit, and row after row is what the processor's own prefetching follows best.
    for (; cols > 1 && i + 2 <= rows; i += 2) columns<W, 2>(w + int64_t(i) * width, x, cols, width, y + i, stride);
    for (; i < rows; i++) columns<W, 1>(w + int64_t(i) * width, x, cols, width, y + i, stride);
}

// ---------------------------------------------------------------- the parts of a layer

struct Matrix {
    const void* weight;  // [rows, width]
    const float* scale;  // [rows] for int8, else null
};

struct Layer {
    Matrix q, k, v, o, gate, up, down;
    const float *attention_norm, *mlp_norm;  // [C]
};

struct Model {
    int32_t layers, width, heads, groups, head_width, ff, vocab, weight_kind, embedding_kind;
    float epsilon;
    const Layer* layer;
    const float *slopes, *norm;  // [H], [C]
    Matrix head;                 // [V, C]
    const void* embedding;       // [V, C]
    void *keys, *values;         // [layers, S, G, T, D]
    int64_t slots, tokens;       // S, T
    const float* roots;          // [T], the square root of every distance
};

template <class W>
struct Step {
    typedef typename Dot<W>::In In;
    typedef typename std::conditional<std::is_same<W, float>::value, float, bf16>::type Cached;
    typedef typename Dot<Cached>::In Query;

    const Model& m;
    const int n;  // rows
    const int64_t *tokens, *slots, *positions;
    const int threads, widest;               // widest: elements of the longest input row
    Buffer<float> x, mixed, gated;           // [N, C], [N, H * D], [N, F]
    Buffer<Query> query;                     // [N, H * D]
    Buffer<In> inputs;                       // of the next matrix, see `in`
    Buffer<float> input_scales;

    Step(const Model& m, int n, const int64_t* tokens, const int64_t* slots, const int64_t* positions, int threads)
        : m(m), n(n), tokens(tokens), slots(slots), positions(positions), threads(threads),
          widest(std::max({m.width, m.heads * m.head_width, m.ff})),
          x(buffer<float>(n * m.width)), mixed(buffer<float>(n * m.heads * m.head_width)),
          gated(buffer<float>(n * m.ff)), query(buffer<Query>(n * m.heads * m.head_width)),
          inputs(buffer<In>(std::max(n, threads) * widest)),
          input_scales(buffer<float>(std::max(n, threads * LINE))) {}

    // The input of the next matrix, [N, its width], and [N] what products with it are to be multiplied by. Threads
    // have one between them; of a single row each has a copy, made sooner than it could be waited for.
    In* in() { return &inputs[n == 1 ? omp_get_thread_num() * widest : 0]; }
    float* in_scale() { return &input_scales[n == 1 ? omp_get_thread_num() * LINE : 0]; }

    // Calls make(i, row i of the input) for each row; it returns what products are to be multiplied by.
    template <class Make>
    void feed(int width, Make make) {
        if (n == 1) {
            *in_scale() = make(0, in());
            return;
        }
#pragma omp for
        for (int i = 0; i < n; i++) input_scales[i] = make(i, &inputs[int64_t(i) * width]);
    }

    void embed() {
#pragma omp for
        for (int i = 0; i < n; i++) {
            int64_t row = tokens[i] * m.width;
            for (int c = 0; c < m.width; c++)
                x[i * m.width + c] = m.embedding_kind ? to_float(((const bf16*)m.embedding)[row + c])
                                                      : ((const float*)m.embedding)[row + c];
        }
    }

    // Makes RMSNorm(x) * weight the input of the next matrices.
    void normalise(const float* weight) {
        feed(m.width, [=, this](int i, In* out) {
            const float* row = &x[i * m.width];
            auto normed = buffer<float>(m.width);
            vec squares = {};
            for (int c = 0; c < m.width; c += LANES) squares += load(row + c) * load(row + c);
            float factor = 1.0f / std::sqrt(sum(squares) / m.width + m.epsilon);
            for (int c = 0; c < m.width; c++) normed[c] = row[c] * factor * weight[c];
            return settle(normed.get(), m.width, out);
        });
    }

    // Makes rows [N, width] the input of the next matrix.
    void take(const float* rows, int width) {
        feed(width, [=](int i, In* out) { return settle(rows + int64_t(i) * width, width, out); });
    }

    // Chunks of a matrix that a thread takes at a time.
    static int piece(int rows, int width) {
        const int streaming = PIECE / int(CHUNK * width * sizeof(W)), fair = rows / CHUNK / (2 * omp_get_num_threads());
        return std::max(1, std::min(streaming, fair));
    }

    // A barrier; while threads wait for each other, memory brings what they will multiply with next.
    void meet(const Matrix& next, int rows, int width) {
        const int64_t first = int64_t(omp_get_thread_num()) * piece(rows, width) * CHUNK;
        const char* p = (const char*)((const W*)next.weight + std::min(first, int64_t(rows) - 1) * width);
        for (int i = 0; i < AHEAD; i += 64) __builtin_prefetch(p + i, 0, 2);
#pragma omp barrier
    }

    // y [cols][CHUNK] = `count` rows of a matrix from `row` on times the input.
    void chunk(const Matrix& matrix, int row, int count, int width, int cols, float* y) {
        product((const W*)matrix.weight + int64_t(row) * width, in(), count, cols, width, y, CHUNK);
        if (matrix.scale)
            for (int j = 0; j < cols; j++)
                for (int i = 0; i < count; i++) y[j * CHUNK + i] *= matrix.scale[row + i] * in_scale()[j];
    }

    // Calls done(first row, rows, y[cols][CHUNK]) for each chunk of `matrix` times the input. No barrier at the end.
    template <class Done>
    void multiply(const Matrix& matrix, int rows, int width, int cols, Done done) {
#pragma omp for schedule(dynamic, piece(rows, width)) nowait
        for (int row = 0; row < rows; row += CHUNK) {
            float y[MAX_ROWS * CHUNK];
            int count = std::min(CHUNK, rows - row);
            chunk(matrix, row, count, width, cols, y);
            done(row, count, y);
        }
    }

    // gated = silu(the input times `gate`) * (the input times `up`). No barrier at the end.
    void multiply_gated(const Matrix& gate, const Matrix& up) {
#pragma omp for schedule(dynamic, piece(m.ff, 2 * m.width)) nowait
        for (int row = 0; row < m.ff; row += CHUNK) {
            float g[MAX_ROWS * CHUNK], u[MAX_ROWS * CHUNK];
            chunk(gate, row, CHUNK, m.width, n, g);
            chunk(up, row, CHUNK, m.width, n, u);
            for (int j = 0; j < n; j++)
                for (int c = 0; c < CHUNK; c += LANES) {
                    vec y = load(g + j * CHUNK + c);
                    y = y / (1.0f + exponential(-y)) * load(u + j * CHUNK + c);
                    std::memcpy(&gated[int64_t(j) * m.ff + row + c], &y, sizeof y);
                }
        }
    }

    // x += the input times `matrix`. No barrier at the end.
    void add_to_x(const Matrix& matrix, int width) {
        multiply(matrix, m.width, width, n, [=, this](int row, int count, const float* y) {
            for (int j = 0; j < n; j++)
                for (int i = 0; i < count; i++) x[int64_t(j) * m.width + row + i] += y[j * CHUNK + i];
        });
    }

    int64_t cached(int layer, int row, int group) const {  // where the keys of a row's sequence begin
        return ((layer * m.slots + slots[row]) * m.groups + group) * m.tokens * m.head_width;
    }

    // The queries of the input. No barrier at the end.
    void ask(const Matrix& matrix) {
        const int rows = m.heads * m.head_width;
        multiply(matrix, rows, m.width, n, [=, this](int row, int count, const float* y) {
            for (int j = 0; j < n; j++)
                for (int i = 0; i < count; i++) store(y[j * CHUNK + i], &query[int64_t(j) * rows + row + i]);
        });
    }

    // Puts the keys or the values of the input into the cache, so that rows of one sequence see each other. No barrier
    // at the end.
    void remember(const Matrix& matrix, int layer, void* cache) {
        const int d = m.head_width;
        multiply(matrix, m.groups * d, m.width, n, [=, this](int row, int count, const float* y) {
            for (int j = 0; j < n; j++) {  // a chunk lies in one head
                Cached* to = (Cached*)cache + cached(layer, j, row / d) + positions[j] * d + row % d;
                for (int i = 0; i < count; i++) store(y[j * CHUNK + i], to + i);
            }
        });
    }

    // Softmax over keys 0..position of q·k / sqrt(D) - slope * sqrt(distance), times the values.
    void attend(int layer) {
        const int d = m.head_width, r = m.heads / m.groups;
        const float scale = 1.0f / std::sqrt(float(d));
#pragma omp for collapse(2) schedule(dynamic, 1)
        for (int i = 0; i < n; i++)
            for (int g = 0; g < m.groups; g++) {
                const int count = int(positions[i]) + 1, stride = (count + LANES - 1) / LANES * LANES;
                const int first = (i * m.groups + g) * r * d;
                auto scores = buffer<float>(r * stride);  // [R, count rounded up]
                product((const Cached*)m.keys + cached(layer, i, g), &query[first], count, r, d, scores.get(), stride);
                for (int h = 0; h < r; h++) weigh(&scores[h * stride], count, stride, scale, m.slopes[g * r + h]);
                average((const Cached*)m.values + cached(layer, i, g), scores.get(), count, stride, &mixed[first]);
            }
    }

    // Scores to probabilities, in place.
    void weigh(float* scores, int count, int stride, float scale, float slope) {
        float peak = -INFINITY;
        for (int t = 0; t < count; t++) {
            scores[t] = scores[t] * scale - slope * m.roots[count - 1 - t];
            peak = std::max(peak, scores[t]);
        }
        std::fill(scores + count, scores + stride, -INFINITY);
        vec total = {};
        for (int t = 0; t < stride; t += LANES) {
            vec p = exponential(load(scores + t) - peak);
            std::memcpy(scores + t, &p, sizeof p);
            total += p;
        }
        const float whole = sum(total);
        for (int t = 0; t < stride; t++) scores[t] /= whole;
    }

    // out [R, D] = weights [R, stride] times values [count, D]: one sweep over the values for all heads of the group.
    void average(const Cached* values, const float* weights, int count, int stride, float* out) {
        const int d = m.head_width, r = m.heads / m.groups;
        std::fill(out, out + r * d, 0.0f);
        for (int t = 0; t < count; t++)
            for (int c = 0; c < d; c += LANES) {
                const vec value = load(values + int64_t(t) * d + c);
                for (int h = 0; h < r; h++) {
                    vec mean = load(out + h * d + c) + weights[h * stride + t] * value;
                    std::memcpy(out + h * d + c, &mean, sizeof mean);
                }
            }
    }

    void run(const int64_t* wanted, int count, float* logits) {
        const int queries = m.heads * m.head_width;
#pragma omp parallel num_threads(threads)
        {
            embed();
            for (int l = 0; l < m.layers; l++) {
                const Layer& layer = m.layer[l];
                normalise(layer.attention_norm);
                ask(layer.q);
                remember(layer.k, l, m.keys);
                remember(layer.v, l, m.values);
                meet(layer.o, m.width, queries);
                attend(l);
                take(mixed.get(), queries);
                add_to_x(layer.o, queries);
                meet(layer.gate, m.ff, m.width);
                normalise(layer.mlp_norm);
                multiply_gated(layer.gate, layer.up);
                meet(layer.down, m.width, m.ff);
                take(gated.get(), m.ff);
                add_to_x(layer.down, m.ff);
                if (l + 1 < m.layers)
                    meet(m.layer[l + 1].q, queries, m.width);
                else
                    meet(m.head, m.vocab, m.width);
            }
            normalise(m.norm);
            keep(wanted, count);
            multiply(m.head, m.vocab, m.width, count, [=, this](int row, int rows, const float* y) {
                for (int j = 0; j < count; j++) std::copy_n(y + j * CHUNK, rows, logits + int64_t(j) * m.vocab + row);
            });
        }
    }

    // Only the wanted rows remain in the input; they are ascending, so rows only move down.
    void keep(const int64_t* wanted, int count) {
        if (n == 1) return;
#pragma omp single
        for (int j = 0; j < count; j++) {
            std::memmove(&inputs[j * m.width], &inputs[wanted[j] * m.width], m.width * sizeof(In));
            input_scales[j] = input_scales[wanted[j]];
        }
    }
};

template <class W>
void step(const Model& m, int n, const int64_t* tokens, const int64_t* slots, const int64_t* positions,
          const int64_t* wanted, int count, float* logits, int threads) {
    Step<W>(m, n, tokens, slots, positions, threads).run(wanted, count, logits);
}

}  // namespace

extern "C" int stepaudio_lanes() { return LANES; }

// Runs n <= MAX_ROWS rows through the model and writes the logits [count, V] of the `wanted` rows (ascending).
extern "C" void stepaudio_step(const Model* m, int n, const int64_t* tokens, const int64_t* slots,
                               const int64_t* positions, const int64_t* wanted, int count, float* logits,
                               int threads) {
    auto run = m->weight_kind == 0 ? step<float> : m->weight_kind == 1 ? step<bf16> : step<int8_t>;
    run(*m, n, tokens, slots, positions, wanted, count, logits, threads);
}
