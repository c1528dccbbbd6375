// One token of one sequence through a LLaMA decoder on a CPU, in bf16: what `native.py` compiles.
//
// Every weight is read once, by rows that the threads share out; between two phases stands a
// barrier. Sums, the residual stream and what softmax and SiLU compute are fp32; what is multiplied
// is bf16, as in torch's products.
//
// d = model width, f = width inside the MLP, K = head width, r = rank of a projection.

#include <immintrin.h>
#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>

using bf16 = uint16_t;
using index = int64_t;

extern "C" {

// Linears of one input x: y_i = B_i s(A_i x), their A one below the other; with ranks 0 y = A x, the
// rows of all projections one below the other.
struct Projections {
    const bf16* A;
    const bf16* B[3];
    index rank[3];  // 0 behind the last projection
    index silu;
    index ranks() const { return rank[0] + rank[1] + rank[2]; }
};

struct Block {
    const bf16* attention_norm;
    const bf16* mlp_norm;
    const bf16* q_norm;  // of each head's queries and keys, (K); none: they are not normalised
    const bf16* k_norm;
    Projections qkv, out, gate_up, down;
    bf16* keys;  // (heads, length, K), rotated
    bf16* values;
};

struct Model {
    index d, f, heads, length, vocabulary, blocks, threads, gate_silu, positions;
    float eps;
    const Block* block;
    const bf16* embedding;
    const bf16* norm;
    const bf16* head;
    const float* rotary;  // cos and sin, (2, positions, K)
    float* scratch;       // see `scratch_elements`
};
}

namespace {

constexpr index LANES = 16;

float widened(bf16 x) {
    uint32_t bits = uint32_t(x) << 16;
    float y;
    __builtin_memcpy(&y, &bits, 4);
    return y;
}

__m512 widened(const bf16* x) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)x)), 16));
}

bf16 narrowed(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    return bf16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Where the threads of a step wait for each other, hundreds of times: OpenMP's own barrier cost a
// third of a token's time (docs/log.md). A thread whose peer has no core gives its own up.
class Barrier {
    std::atomic<int> arrived{0}, turn{0};

  public:
    void wait() {
        int now = turn.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == omp_get_num_threads()) {
            arrived.store(0, std::memory_order_relaxed);
            turn.store(now + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; turn.load(std::memory_order_acquire) == now; spins++) {
            _mm_pause();
            if (spins > 5000) sched_yield();
        }
    }
};

// The rows of `n` that are this thread's: whole fours.
struct Share {
    index begin, end;
    explicit Share(index n) {
        index threads = omp_get_num_threads(), each = (n + threads - 1) / threads;
        each = (each + 3) / 4 * 4;
        begin = std::min(n, each * omp_get_thread_num());
        end = std::min(n, begin + each);
    }
};

__m512bh load(const bf16* x, __mmask32 mask) {
    return (__m512bh)_mm512_maskz_loadu_epi16(mask, x);
}

// y_i = W_i x of R rows from the first on.
template <int R>
void products(const bf16* W, index columns, const bf16* x, float* y) {
    __m512 sums[R];
    for (int i = 0; i < R; i++) sums[i] = _mm512_setzero_ps();
    index c = 0;
    for (; c + 32 <= columns; c += 32) {
        __m512bh part = (__m512bh)_mm512_loadu_si512(x + c);
        for (int i = 0; i < R; i++) {
            __m512bh row = (__m512bh)_mm512_loadu_si512(W + i * columns + c);
            sums[i] = _mm512_dpbf16_ps(sums[i], row, part);
        }
    }
    if (c < columns) {
        __mmask32 rest = (1u << (columns - c)) - 1;
        __m512bh part = load(x + c, rest);
        for (int i = 0; i < R; i++)
            sums[i] = _mm512_dpbf16_ps(sums[i], load(W + i * columns + c, rest), part);
    }
    for (int i = 0; i < R; i++) y[i] = _mm512_reduce_add_ps(sums[i]);
}

void multiply(const bf16* W, index columns, const bf16* x, float* y, Share rows) {
    index i = rows.begin;
    for (; i + 4 <= rows.end; i += 4) products<4>(W + i * columns, columns, x, y + i);
    for (; i < rows.end; i++) products<1>(W + i * columns, columns, x, y + i);
}

// e^x: 2^n times a polynomial in what is left, |.| <= ln 2 / 2; relative error below 2e-7.
__m512 exponential(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-88.0f));
    x = _mm512_min_ps(x, _mm512_set1_ps(88.0f));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    x = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    x = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), x);
    __m512 y = _mm512_set1_ps(1.0f / 5040);
    for (float term : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
        y = _mm512_fmadd_ps(y, x, _mm512_set1_ps(term));
    return _mm512_scalef_ps(y, n);
}

// h_i = s(z_i) u_i in bf16; u may be missing, and s be the identity.
void gate(const float* z, const float* u, bf16* h, bool silu, Share part) {
    for (index i = part.begin; i < part.end; i += LANES) {
        __mmask16 mask = (1u << std::min(LANES, part.end - i)) - 1;
        __m512 x = _mm512_maskz_loadu_ps(mask, z + i);
        if (silu) {
            __m512 e = exponential(_mm512_sub_ps(_mm512_setzero_ps(), x));
            x = _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
        }
        if (u) x = _mm512_mul_ps(x, _mm512_maskz_loadu_ps(mask, u + i));
        _mm256_mask_storeu_epi16(h + i, mask, (__m256i)_mm512_cvtneps_pbh(x));
    }
}

float inverse_rms(const float* x, index d, float eps) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (index i = 0; i < d; i++) sum += x[i] * x[i];
    return 1 / std::sqrt(sum / d + eps);
}

// y = x / rms(x) * weight, of all d: each thread has its own.
void normalise(const float* x, const bf16* weight, index d, float eps, bf16* y) {
    float scale = inverse_rms(x, d, eps);
    for (index i = 0; i < d; i++) y[i] = narrowed(x[i] * scale * widened(weight[i]));
}

// The rank-r vectors of x, side by side, which all threads then have.
void encode(const Projections& p, index d, const bf16* x, float* z, bf16* h, Barrier& barrier) {
    Share part(p.ranks());
    multiply(p.A, d, x, z, part);
    gate(z, nullptr, h, p.silu, part);
    barrier.wait();
}

// x += what one projection makes of its input.
void add(const Projections& p, index d_in, index d, const bf16* input, float* x, float* z, bf16* h,
         Barrier& barrier) {
    const bf16 *W = p.A, *from = input;
    if (p.ranks()) {
        encode(p, d_in, input, z, h, barrier);
        W = p.B[0], from = h, d_in = p.rank[0];
    }
    Share part(d);
    float* y = z + p.rank[0];
    multiply(W, d_in, from, y, part);
    for (index i = part.begin; i < part.end; i++) x[i] += y[i];
    barrier.wait();
}

// The same of one head, in place; nothing without a weight.
void normalise_head(float* x, const bf16* weight, index K, float eps) {
    if (!weight) return;
    float scale = inverse_rms(x, K, eps);
    for (index i = 0; i < K; i++) x[i] *= scale * widened(weight[i]);
}

// x turned by a position's angles, times a factor; the halves of x are the two coordinates.
void rotate(const float* x, const float* cos, const float* sin, index K, float factor, bf16* y) {
    index half = K / 2;
    for (index i = 0; i < half; i++) {
        y[i] = narrowed(factor * (x[i] * cos[i] - x[half + i] * sin[i]));
        y[half + i] = narrowed(factor * (x[half + i] * cos[half + i] + x[i] * sin[half + i]));
    }
}

// Of one head, whose K is 16 N; p: room for a number a position.
template <int N>
void attend(const bf16* q, const bf16* keys, const bf16* values, index seen, float* p, bf16* y) {
    constexpr index K = LANES * N;
    index s = 0;
    for (; s + 4 <= seen; s += 4) products<4>(keys + s * K, K, q, p + s);
    for (; s < seen; s++) products<1>(keys + s * K, K, q, p + s);
    float most = *std::max_element(p, p + seen), sum = 0;
    for (s = 0; s < seen; s += LANES) {
        __mmask16 mask = (1u << std::min(LANES, seen - s)) - 1;
        __m512 x = _mm512_maskz_loadu_ps(mask, p + s);
        x = exponential(_mm512_sub_ps(x, _mm512_set1_ps(most)));
        _mm512_mask_storeu_ps(p + s, mask, x);
        sum += _mm512_mask_reduce_add_ps(mask, x);
    }
    __m512 sums[N];
    for (int i = 0; i < N; i++) sums[i] = _mm512_setzero_ps();
    for (s = 0; s < seen; s++)
        for (int i = 0; i < N; i++)
            sums[i] = _mm512_fmadd_ps(_mm512_set1_ps(p[s]),
                                      widened(values + s * K + i * LANES), sums[i]);
    for (int i = 0; i < N; i++) {
        __m512 of = _mm512_mul_ps(sums[i], _mm512_set1_ps(1 / sum));
        _mm256_storeu_si256((__m256i*)(y + i * LANES), (__m256i)_mm512_cvtneps_pbh(of));
    }
}

using Attend = void (*)(const bf16*, const bf16*, const bf16*, index, float*, bf16*);
constexpr Attend ATTEND[] = {attend<1>, attend<2>, attend<3>, attend<4>,
                             attend<5>, attend<6>, attend<7>, attend<8>};

// q, k and v (3 d) -> y (d); k and v are kept.
void attention(const Model& m, const Block& b, float* qkv, index position, float* p, bf16* y,
               Barrier& barrier) {
    index K = m.d / m.heads;
    const float *cos = m.rotary + position * K, *sin = cos + m.positions * K;
    bf16 q[LANES * 8];
    for (index head = omp_get_thread_num(); head < m.heads; head += omp_get_num_threads()) {
        float* of = qkv + head * K;
        bf16 *keys = b.keys + head * m.length * K, *values = b.values + head * m.length * K;
        normalise_head(of, b.q_norm, K, m.eps);
        normalise_head(of + m.d, b.k_norm, K, m.eps);
        rotate(of, cos, sin, K, 1 / std::sqrt(float(K)), q);
        rotate(of + m.d, cos, sin, K, 1, keys + position * K);
        for (index i = 0; i < K; i++) values[position * K + i] = narrowed(of[2 * m.d + i]);
        ATTEND[K / LANES - 1](q, keys, values, position + 1, p, y + head * K);
    }
    barrier.wait();
}

}  // namespace

extern "C" {

// fp32 elements that `scratch` has: for all, and for each thread.
index scratch_elements(index d, index f, index length, index threads) {
    return 12 * d + 8 * f + threads * (d + length + 64);
}

// Logits (vocabulary) of the token that follows `position` others, which the cache has.
void step(const Model* model, index token, index position, float* logits) {
    const Model& m = *model;
    float* x = m.scratch;                // (d)
    float* wide = x + m.d;               // (3 d), or gate and up (2 f)
    float* z = wide + 3 * m.d + 2 * m.f;  // of the bottlenecks and behind them
    bf16* h = (bf16*)(z + 3 * m.d + 2 * m.f);
    bf16* y = h + 3 * m.d + 2 * m.f;  // attention's, or the MLP's product
    Barrier barrier;
#pragma omp parallel num_threads(m.threads)
    {
        float* own = m.scratch + 12 * m.d + 8 * m.f;
        own += omp_get_thread_num() * (m.d + m.length + 64);
        bf16* normed = (bf16*)own;
        float* p = own + m.d;
        for (Share part(m.d); part.begin < part.end; part.begin++)
            x[part.begin] = widened(m.embedding[token * m.d + part.begin]);
            barrier.wait();
        for (index i = 0; i < m.blocks; i++) {
            const Block& b = m.block[i];
            normalise(x, b.attention_norm, m.d, m.eps, normed);
            if (b.qkv.ranks()) {
                encode(b.qkv, m.d, normed, z, h, barrier);
                const bf16* from = h;
                for (index j = 0; j < 3; from += b.qkv.rank[j++])
                    multiply(b.qkv.B[j], b.qkv.rank[j], from, wide + j * m.d, Share(m.d));
            } else {
                multiply(b.qkv.A, m.d, normed, wide, Share(3 * m.d));
            }
            barrier.wait();
            attention(m, b, wide, position, p, y, barrier);
            add(b.out, m.d, m.d, y, x, z, h, barrier);

            normalise(x, b.mlp_norm, m.d, m.eps, normed);
            Share part(m.f);
            const Projections& both = b.gate_up;
            if (both.ranks()) {
                encode(both, m.d, normed, z, h, barrier);
                multiply(both.B[0], both.rank[0], h, wide, part);
                multiply(both.B[1], both.rank[1], h + both.rank[0], wide + m.f, part);
            } else {
                multiply(both.A, m.d, normed, wide, part);
                multiply(both.A + m.f * m.d, m.d, normed, wide + m.f, part);
            }
            gate(wide, wide + m.f, y, m.gate_silu, part);
            barrier.wait();
            add(b.down, m.f, m.d, y, x, z, h, barrier);
        }
        normalise(x, m.norm, m.d, m.eps, normed);
        multiply(m.head, m.d, normed, logits, Share(m.vocabulary));
    }
}
}
