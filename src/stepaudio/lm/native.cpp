// A step of the Step-1 language model on a CPU: new tokens of any number of sequences in, next-token logits out.
//
// Decoding reads every weight once per step and does little else, so it should run at the speed of memory. A step
// made of separate tensor operations does not: each operation is a call, a thread-pool barrier and a fresh read of
// its inputs. Here the whole step is one parallel region. Weights are read as they lie in the checkpoint (float32,
// bfloat16, or int8 with one scale per row; int8 is multiplied in whole numbers where the processor can). A row of a
// step is one token with its slot and position in the key-value cache, so decoding, prefill and mixtures of both are
// the same thing, sequences of different lengths need no padding, and the arithmetic of a row does not depend on which
// other rows share the step.
//
// N rows, C width, H query heads in G groups of R, D head width, F feed-forward width, V vocabulary, S slots,
// T tokens per slot.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
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
constexpr int NEAR = 2 << 10;      // the same for a single column, where the processor prefetches by itself
constexpr int CHUNK = UNROLL;      // matrix rows whose results are handed on together; they lie in one head
constexpr int LINE = 16;           // integers of a cache line
constexpr int MAX_ROWS = 64;       // rows per step (native.py cuts longer ones)

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

inline void save(vec v, float* p) { std::memcpy(p, &v, sizeof v); }

inline float sum(vec v) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)v);
#else
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) v[i] += v[i + width];
    return v[0];
#endif
}

inline float largest(vec v) {
    float peak = v[0];
    for (int lane = 1; lane < LANES; lane++) peak = std::max(peak, v[lane]);
    return peak;
}


// The sums of four vectors, each added up in the same order.
inline void add_up(const vec* v, float* y) {
#ifdef __AVX512F__
    auto halves = [](vec a, vec b) {
        return _mm512_add_ps(_mm512_unpacklo_ps((__m512)a, (__m512)b), _mm512_unpackhi_ps((__m512)a, (__m512)b));
    };
    const __m512 ab = halves(v[0], v[1]), cd = halves(v[2], v[3]);
    const __m512d lo = _mm512_unpacklo_pd((__m512d)ab, (__m512d)cd), hi = _mm512_unpackhi_pd((__m512d)ab, (__m512d)cd);
    const __m512 abcd = _mm512_add_ps((__m512)lo, (__m512)hi);  // in each quarter
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
    _mm_storeu_ps(y, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#else
    for (int i = 0; i < 4; i++) y[i] = sum(v[i]);
#endif
}

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

// Asks for memory that will be read soon.
inline void prefetch(const void* p, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char*)p + i, 0, 2);
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

// Dot<W> says how products with weights W are made. `In` is how activations are stored for them, `length` how many In
// a row of `width` activations takes, and `settle` puts a row into that form. `tile` multiplies: acc[i][j] adds up to
// row i of w · x[j], for ROWS x COLS of them, in an order that depends on neither.

// Floating-point numbers: D multiplies UNROLL of them at a time.
template <class D, class W, class In_>
struct Floats {
    typedef In_ In;
    static int length(int width) { return width; }

    template <int ROWS, int COLS>
    static void tile(const W* w, const In* x, int width, vec (*acc)[COLS]) {
        vec even[ROWS][COLS] = {}, odd[ROWS][COLS] = {};  // two sums: one would wait for itself
        decltype(D::weights(w)) weights[ROWS];
        auto inner = [&](auto& sums, int k) __attribute__((always_inline)) {
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; i++) {
                const W* p = w + int64_t(i) * width + k;
                __builtin_prefetch((const char*)p + (ROWS > 1 ? AHEAD : NEAR), 0, 2);
                weights[i] = D::weights(p);
            }
#pragma GCC unroll 8
            for (int j = 0; j < COLS; j++) {
                auto inputs = D::inputs(x + int64_t(j) * width + k);
#pragma GCC unroll 8
                for (int i = 0; i < ROWS; i++) D::add(sums[i][j], weights[i], inputs);
            }
        };
        int k = 0;
        for (; k + UNROLL < width; k += 2 * UNROLL) {
            inner(even, k);
            inner(odd, k + UNROLL);
        }
        if (k < width) inner(even, k);
        for (int i = 0; i < ROWS; i++)
            for (int j = 0; j < COLS; j++) acc[i][j] = even[i][j] + odd[i][j];
    }
};

template <class W>
struct Dot : Floats<Dot<W>, W, float> {
    struct Pair {
        vec a, b;
    };
    static Pair weights(const W* p) { return {load(p), load(p + LANES)}; }
    static Pair inputs(const float* p) { return {load(p), load(p + LANES)}; }
    static void add(vec& acc, const Pair& w, const Pair& x) {
        acc += w.a * x.a;
        acc += w.b * x.b;
    }
    static void settle(const float* x, int width, float* out) { std::copy_n(x, width, out); }
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
struct Dot<bf16> : Floats<Dot<bf16>, bf16, bf16> {
    static __m512bh weights(const bf16* p) { return (__m512bh)_mm512_loadu_si512(p); }
    static __m512bh inputs(const bf16* p) { return (__m512bh)load_once(p); }
    static void add(vec& acc, __m512bh w, __m512bh x) { acc = (vec)_mm512_dpbf16_ps((__m512)acc, w, x); }

    static void settle(const float* x, int width, bf16* out) {
        for (int c = 0; c < width; c += UNROLL) {
            const __m512bh both = _mm512_cvtne2ps_pbh((__m512)load(x + c + LANES), (__m512)load(x + c));
            _mm512_storeu_si512(out + c, (__m512i)both);
        }
    }
};
#endif

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
// Whole numbers: 256 activations of a row share a scale and are int8 like the weights. The instruction wants one factor
// unsigned, so weights have 128 added to them, and a row's sums start with what takes that away again: the `offset` of
// its first group.
struct alignas(64) Group {
    static constexpr int SIZE = 256;
    int8_t x[SIZE];
    vec offset;
    float scale;
};

template <>
struct Dot<int8_t> {
    typedef Group In;
    static int length(int width) { return (width + Group::SIZE - 1) / Group::SIZE; }

    static void settle(const float* x, int width, Group* out) {
        vec& offset = out->offset;
        offset = vec{};
        for (; width > 0; width -= Group::SIZE, x += Group::SIZE, out++) {
            const int count = std::min(width, Group::SIZE);
            vec peaks = {};
            for (int c = 0; c < count; c += LANES) {
                const vec v = load(x + c), size = v < 0.0f ? -v : v;
                peaks = size > peaks ? size : peaks;
            }
            out->scale = std::max(largest(peaks), 1e-30f) / 127;
            const float inverse = 1 / out->scale;
            ivec levels = {};
            for (int c = 0; c < count; c += LANES) {
                const __m512i level = _mm512_cvtps_epi32((__m512)(load(x + c) * inverse));
                _mm_storeu_si128((__m128i*)(out->x + c), _mm512_cvtsepi32_epi8(level));
                levels += (ivec)level;
            }
            std::fill(out->x + count, std::end(out->x), 0);
            offset -= __builtin_convertvector(levels, vec) * (128 * out->scale);
        }
    }

    // total[i][j] += `count` weights of row i times as many activations of column j; rows are `width` weights apart,
    // columns `stride` groups. Inlined, so that whole groups become straight code.
    template <int ROWS, int COLS>
    __attribute__((always_inline)) static void add(const int8_t* w, int width, const Group* x, int stride, int count,
                                                   vec (&total)[ROWS][COLS]) {
        __m512i sums[ROWS][COLS] = {};
#pragma GCC unroll 8
        for (int k = 0; k < count; k += 64) {
            __m512i weights[ROWS];
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; i++) {
                const int8_t* p = w + int64_t(i) * width + k;
                __builtin_prefetch(p + (ROWS > 1 ? AHEAD : NEAR), 0, 2);
                weights[i] = k + 64 <= count ? _mm512_loadu_si512(p)
                                             : _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i*)p));
                weights[i] = _mm512_xor_si512(weights[i], _mm512_set1_epi8(-128));
            }
#pragma GCC unroll 8
            for (int j = 0; j < COLS; j++) {
                const __m512i inputs = load_once(x[j * stride].x + k);
#pragma GCC unroll 8
                for (int i = 0; i < ROWS; i++) sums[i][j] = _mm512_dpbusd_epi32(sums[i][j], weights[i], inputs);
            }
        }
#pragma GCC unroll 8
        for (int j = 0; j < COLS; j++)
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; i++)
                total[i][j] += __builtin_convertvector((ivec)sums[i][j], vec) * x[j * stride].scale;
    }

    template <int ROWS, int COLS>
    static void tile(const int8_t* w, const Group* x, int width, vec (*acc)[COLS]) {
        const int stride = length(width);
        vec total[ROWS][COLS];
        for (int i = 0; i < ROWS; i++)
            for (int j = 0; j < COLS; j++) total[i][j] = x[j * stride].offset;
        int k = 0;
        for (; k + Group::SIZE <= width; k += Group::SIZE)
            add<ROWS, COLS>(w + k, width, x++, stride, Group::SIZE, total);
        if (k < width) add<ROWS, COLS>(w + k, width, x, stride, width - k, total);
        for (int i = 0; i < ROWS; i++)
            for (int j = 0; j < COLS; j++) acc[i][j] = total[i][j];
    }
};
#endif

// y[j * stride + i] = row i of w · x[j] for COLS columns and `rows` rows, four at most.
template <class W, int COLS>
inline void four(const W* w, const typename Dot<W>::In* x, int rows, int width, float* y, int stride) {
    vec acc[4][COLS] = {};
    // For one column memory is the limit, and row after row is what the processor's own prefetching follows best.
    constexpr int ROWS = COLS == 1 ? 1 : 2;
    int i = 0;
    for (; i + ROWS <= rows; i += ROWS) Dot<W>::template tile<ROWS, COLS>(w + int64_t(i) * width, x, width, acc + i);
    for (; i < rows; i++) Dot<W>::template tile<1, COLS>(w + int64_t(i) * width, x, width, acc + i);
    for (int j = 0; j < COLS; j++) {
        const vec column[4] = {acc[0][j], acc[1][j], acc[2][j], acc[3][j]};
        float whole[4];
        add_up(column, whole);
        if (rows == 4)
            std::memcpy(y + j * stride, whole, sizeof whole);
        else
            std::copy_n(whole, rows, y + j * stride);
    }
}

// The same for any number of rows and columns.
template <class W>
inline void product(const W* w, const typename Dot<W>::In* x, int rows, int cols, int width, float* y, int stride) {
    for (int i = 0; i < rows; i += 4) {
        const W* p = w + int64_t(i) * width;
        const int count = std::min(4, rows - i);
        int j = 0;
        auto at = [&](int j) { return x + int64_t(j) * Dot<W>::length(width); };
        for (; j + 4 <= cols; j += 4) four<W, 4>(p, at(j), count, width, y + int64_t(j) * stride + i, stride);
        for (; j + 3 == cols; j += 3) four<W, 3>(p, at(j), count, width, y + int64_t(j) * stride + i, stride);
        for (; j + 2 <= cols; j += 2) four<W, 2>(p, at(j), count, width, y + int64_t(j) * stride + i, stride);
        for (; j < cols; j++) four<W, 1>(p, at(j), count, width, y + int64_t(j) * stride + i, stride);
    }
}

// ---------------------------------------------------------------- the parts of a layer

struct Matrix {
    const void* weight;  // [rows, width]
    const float* scale;  // [rows] for int8, else null
};

// Matrices that are read together are one: the rows of q, then k, then v; and those of gate and up in turn. Memory that
// is read in one piece comes a fifth to a half faster than in many short ones.
struct Layer {
    Matrix qkv, o, gate_up, down;
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
    const float* roots;          // [T + LANES]: the square roots of distances T - 1 to 0, then anything
};

template <class W>
struct Step {
    typedef typename Dot<W>::In In;
    typedef typename std::conditional<std::is_same<W, float>::value, float, bf16>::type Cached;
    typedef typename Dot<Cached>::In Query;

    const Model& m;
    const int n;  // rows
    const int64_t *tokens, *slots, *positions;
    const int threads, longest;              // In of the longest input row
    Buffer<float> x, mixed, gated;           // [N, C], [N, H * D], [N, F]
    Buffer<Query> query;                     // [N, H * D]
    Buffer<In> inputs;                       // of the next matrix, see `in`
    const int loops;                         // in a step, see `share`
    Buffer<int> loops_done;                  // [threads], each in a cache line
    Buffer<std::atomic<int>> parts_taken;    // [threads, loops]: of a thread's own parts

    Step(const Model& m, int n, const int64_t* tokens, const int64_t* slots, const int64_t* positions, int threads)
        : m(m), n(n), tokens(tokens), slots(slots), positions(positions), threads(threads),
          longest(Dot<W>::length(std::max({m.width, m.heads * m.head_width, m.ff}))),
          x(buffer<float>(n * m.width)), mixed(buffer<float>(n * m.heads * m.head_width)),
          gated(buffer<float>(n * m.ff)), query(buffer<Query>(n * m.heads * m.head_width)),
          inputs(buffer<In>(std::max(n, threads) * longest)), loops((m.layers * 5 + 1 + LINE - 1) / LINE * LINE),
          loops_done(buffer<int>(threads * LINE)), parts_taken(buffer<std::atomic<int>>(threads * loops)) {
        std::fill_n(loops_done.get(), threads * LINE, 0);
        for (int i = 0; i < threads * loops; i++) new (&parts_taken[i]) std::atomic<int>(0);
    }

    // The input of the next matrix, [N, its width]. Threads have one between them; of a single row each has a copy,
    // made sooner than it could be waited for.
    In* in() { return &inputs[n == 1 ? omp_get_thread_num() * longest : 0]; }

    // Calls make(i, row i of the input) for each row.
    template <class Make>
    void feed(int width, Make make) {
        if (n == 1) {
            make(0, in());
            return;
        }
#pragma omp for
        for (int i = 0; i < n; i++) make(i, &inputs[int64_t(i) * Dot<W>::length(width)]);
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
            Dot<W>::settle(normed.get(), m.width, out);
        });
    }

    // Makes rows [N, width] the input of the next matrix.
    void take(const float* rows, int width) {
        feed(width, [=](int i, In* out) { Dot<W>::settle(rows + int64_t(i) * width, width, out); });
    }

    // Where the parts of a loop begin that are a thread's own.
    static int begin(int parts, int thread) { return int64_t(parts) * thread / omp_get_num_threads(); }

    // Calls work(part) for every part of a loop, in some thread. Each begins with parts of its own, one behind the
    // other and at a place that it knows beforehand, and then takes from those who are late. No barrier at the end.
    template <class Work>
    void share(int parts, Work work) {
        const int me = omp_get_thread_num(), all = omp_get_num_threads(), loop = loops_done[me * LINE]++;
        for (int i = 0; i < all; i++) {
            const int owner = (me + i) % all, first = begin(parts, owner), end = begin(parts, owner + 1);
            std::atomic<int>& taken = parts_taken[owner * loops + loop];
            for (int part; (part = first + taken.fetch_add(1, std::memory_order_relaxed)) < end;) work(part);
        }
    }

    static int chunks(int rows) { return (rows + CHUNK - 1) / CHUNK; }

    // A barrier; while threads wait for each other, memory brings what they will multiply with next.
    void meet(const Matrix& next, int rows, int width) {
        const int64_t first = int64_t(begin(chunks(rows), omp_get_thread_num())) * CHUNK;
        prefetch((const W*)next.weight + first * width, AHEAD);
#pragma omp barrier
    }

    // y [cols][CHUNK] = `count` rows of a matrix from `row` on times the input.
    void chunk(const Matrix& matrix, int row, int count, int width, int cols, float* y) {
        product((const W*)matrix.weight + int64_t(row) * width, in(), count, cols, width, y, CHUNK);
        if (matrix.scale)
            for (int j = 0; j < cols; j++)
                for (int i = 0; i < count; i++) y[j * CHUNK + i] *= matrix.scale[row + i];
    }

    // Calls done(first row, rows, y[cols][CHUNK]) for each chunk of `matrix` times the input. No barrier at the end.
    template <class Done>
    void multiply(const Matrix& matrix, int rows, int width, int cols, Done done) {
        share(chunks(rows), [&](int part) {
            float y[MAX_ROWS * CHUNK];
            const int row = part * CHUNK, count = std::min(CHUNK, rows - row);
            chunk(matrix, row, count, width, cols, y);
            done(row, count, y);
        });
    }

    // gated = silu(the even rows of `gate_up` times the input) * (the odd rows times it). No barrier at the end.
    void multiply_gated(const Matrix& gate_up) {
        multiply(gate_up, 2 * m.ff, m.width, n, [=, this](int row, int, const float* y) {
            for (int j = 0; j < n; j++) {
                vec gate, up;
                for (int i = 0; i < LANES; i++) {
                    gate[i] = y[j * CHUNK + 2 * i];
                    up[i] = y[j * CHUNK + 2 * i + 1];
                }
                save(gate / (1.0f + exponential(-gate)) * up, &gated[int64_t(j) * m.ff + row / 2]);
            }
        });
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

    // The queries of the input, and its keys and values into the cache, so that rows of one sequence see each other. No
    // barrier at the end.
    void ask(const Matrix& qkv, int layer) {
        const int d = m.head_width, queries = m.heads * d, keys = m.groups * d;
        multiply(qkv, queries + 2 * keys, m.width, n, [=, this](int row, int count, const float* y) {
            for (int j = 0; j < n; j++) {
                auto put = [&](auto* to) {
                    for (int i = 0; i < count; i++) store(y[j * CHUNK + i], to + i);
                };
                if (row < queries) {
                    put(&query[int64_t(j) * queries + row]);
                } else {
                    Cached* cache = (Cached*)(row < queries + keys ? m.keys : m.values);
                    const int at = (row - queries) % keys;
                    put(cache + cached(layer, j, at / d) + positions[j] * d + at % d);
                }
            }
        });
    }

    // Softmax over keys 0..position of q·k / sqrt(D) - slope * sqrt(distance), times the values.
    void attend(int layer) {
        const int d = m.head_width, r = m.heads / m.groups;
        const float scale = 1.0f / std::sqrt(float(d));
        share(n * m.groups, [&](int part) {
            const int i = part / m.groups, g = part % m.groups;
            const int count = int(positions[i]) + 1, stride = (count + LANES - 1) / LANES * LANES;
            const int first = part * r * d;
            const Cached* keys = (const Cached*)m.keys + cached(layer, i, g);
            const Cached* values = (const Cached*)m.values + cached(layer, i, g);
            auto scores = buffer<float>(r * stride);  // [R, count rounded up]
            for (int t = 0; t < count; t += CHUNK) {  // memory brings the values meanwhile
                const int some = std::min(CHUNK, count - t);
                prefetch(values + int64_t(t) * d, some * d * sizeof(Cached));
                product(keys + int64_t(t) * d, &query[first], some, r, d, scores.get() + t, stride);
            }
            for (int h = 0; h < r; h++) weigh(&scores[h * stride], count, stride, scale, m.slopes[g * r + h]);
            average(values, scores.get(), count, stride, &mixed[first]);
        });
#pragma omp barrier
    }

    // Scores to probabilities, in place.
    void weigh(float* scores, int count, int stride, float scale, float slope) {
        const float* roots = m.roots + m.tokens - count;
        std::fill(scores + count, scores + stride, -INFINITY);
        vec peaks = vec{} - INFINITY;
        for (int t = 0; t < stride; t += LANES) {
            vec score = load(scores + t) * scale - slope * load(roots + t);
            peaks = score > peaks ? score : peaks;
            save(score, scores + t);
        }
        const float peak = largest(peaks);
        vec total = {};
        for (int t = 0; t < stride; t += LANES) {
            vec p = exponential(load(scores + t) - peak);
            save(p, scores + t);
            total += p;
        }
        const float inverse = 1.0f / sum(total);
        for (int t = 0; t < stride; t += LANES) save(load(scores + t) * inverse, scores + t);
    }

    // out [R, D] = weights [R, stride] times values [count, D], a few heads at a time.
    void average(const Cached* values, const float* weights, int count, int stride, float* out) {
        const int r = m.heads / m.groups;
        int h = 0;
        for (; h + 4 <= r; h += 4) average<4>(values, weights + h * stride, count, stride, out + h * m.head_width);
        if (r - h == 3) average<3>(values, weights + h * stride, count, stride, out + h * m.head_width);
        if (r - h == 2) average<2>(values, weights + h * stride, count, stride, out + h * m.head_width);
        if (r - h == 1) average<1>(values, weights + h * stride, count, stride, out + h * m.head_width);
    }

    template <int HEADS>
    void average(const Cached* values, const float* weights, int count, int stride, float* out) {
        const int d = m.head_width;
        for (int c = 0; c < d; c += UNROLL) {
            vec left[HEADS] = {}, right[HEADS] = {};
            for (int t = 0; t < count; t++) {
                const vec a = load(values + int64_t(t) * d + c), b = load(values + int64_t(t) * d + c + LANES);
#pragma GCC unroll 4
                for (int h = 0; h < HEADS; h++) {
                    left[h] += weights[h * stride + t] * a;
                    right[h] += weights[h * stride + t] * b;
                }
            }
            for (int h = 0; h < HEADS; h++) {
                save(left[h], out + h * d + c);
                save(right[h], out + h * d + c + LANES);
            }
        }
    }

    void run(const int64_t* wanted, int count, float* logits) {
        const int queries = m.heads * m.head_width, keys = m.groups * m.head_width;
#pragma omp parallel num_threads(threads)
        {
            embed();
            for (int l = 0; l < m.layers; l++) {
                const Layer& layer = m.layer[l];
                normalise(layer.attention_norm);
                ask(layer.qkv, l);
                meet(layer.o, m.width, queries);
                attend(l);
                take(mixed.get(), queries);
                add_to_x(layer.o, queries);
                meet(layer.gate_up, 2 * m.ff, m.width);
                normalise(layer.mlp_norm);
                multiply_gated(layer.gate_up);
                meet(layer.down, m.width, m.ff);
                take(gated.get(), m.ff);
                add_to_x(layer.down, m.ff);
                if (l + 1 < m.layers)
                    meet(m.layer[l + 1].qkv, queries + 2 * keys, m.width);
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
        const int length = Dot<W>::length(m.width);
#pragma omp single
        for (int j = 0; j < count; j++)
            std::memmove(&inputs[j * length], &inputs[wanted[j] * length], length * sizeof(In));
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
