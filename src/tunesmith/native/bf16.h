/* What all kernels share: numbers in bf16 (the upper half of a float32), and how work is split between threads. */
#ifndef TUNESMITH_BF16_H
#define TUNESMITH_BF16_H

#include <immintrin.h>
#include <omp.h>
#include <stdint.h>

typedef uint16_t bf16;

#define INLINE static inline __attribute__((always_inline))

/* Numbers of a vector, outputs of a panel of a packed weight, and tokens of a page of keys or values. */
enum { LANES = 16, PANEL = 32, PAGE = 64 };

INLINE __m512 widen(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

INLINE __m512 load_bf16(const bf16 *from) { return widen(_mm256_loadu_si256((const __m256i *)from)); }

/* To the nearest, ties to even. */
INLINE __m256i narrow(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

INLINE void store_bf16(bf16 *to, __m512 x) { _mm256_storeu_si256((__m256i *)to, narrow(x)); }

/* What a number in bf16 keeps of x. */
INLINE __m512 rounded(__m512 x) { return widen(narrow(x)); }

/* exp(x) to about 2 units in the last place; 0 below -87, and exactly 1 for 0. */
INLINE __m512 exponential(__m512 x) {
    const __mmask16 is_normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_GE_OQ);
    const __m512 twos = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 rest = _mm512_fnmadd_ps(twos, _mm512_set1_ps(0.693359375f), x);
    rest = _mm512_fnmadd_ps(twos, _mm512_set1_ps(-2.12194440e-4f), rest);
    __m512 sum = _mm512_set1_ps(1.0f / 5040);
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f / 720));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f / 120));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f / 24));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f / 6));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(0.5f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f));
    return _mm512_maskz_scalef_ps(is_normal, sum, twos);
}

/* 1 / (1 + exp(-x)), to about 2 units in the last place: a division would take several times as long. */
INLINE __m512 sigmoid(__m512 x) {
    const __m512 below = _mm512_add_ps(_mm512_set1_ps(1.0f), exponential(_mm512_sub_ps(_mm512_setzero_ps(), x)));
    const __m512 guess = _mm512_rcp14_ps(below);
    /* Newton's step; where exp overflows, its product of 0 and infinity isn't wanted. */
    const __mmask16 is_finite = _mm512_cmp_ps_mask(below, _mm512_set1_ps(1e38f), _CMP_NGT_UQ);
    return _mm512_maskz_mul_ps(is_finite, guess, _mm512_fnmadd_ps(below, guess, _mm512_set1_ps(2.0f)));
}

/* silu(gate) * up, each step rounded to bf16. */
INLINE __m512 gated(__m512 gate, __m512 up) {
    gate = rounded(gate);
    return _mm512_mul_ps(rounded(_mm512_mul_ps(gate, sigmoid(gate))), rounded(up));
}

/* The part of `count` things that is this thread's: from *first on, before *end. */
INLINE void share(long count, long *first, long *end) {
    const long threads = omp_get_num_threads(), own = omp_get_thread_num();
    *first = count * own / threads;
    *end = count * (own + 1) / threads;
}

/* Rows of pairs and the panels that they are multiplied with; see `multiply`. */
typedef struct {
    const bf16 *rows[6];
    const bf16 *left, *right;
    long pairs;
} Factors;

/* Add the products of up to 6 rows with 2 or 4 vectors of columns to their sums. */
INLINE void accumulate(const int rows, const int is_wide, const Factors *f, const bf16 *ahead, __m512 sums[6][4]) {
    const bf16 *left = f->left, *right = f->right;
    for (long p = 0; p < f->pairs; p++) {
        _mm_prefetch((const char *)(ahead + p * PANEL), _MM_HINT_T1);
        const __m512bh b0 = (__m512bh)_mm512_loadu_si512(left + p * 2 * PANEL);
        const __m512bh b1 = (__m512bh)_mm512_loadu_si512(left + p * 2 * PANEL + PANEL);
        __m512bh b2 = b0, b3 = b1;
        if (is_wide) {
            b2 = (__m512bh)_mm512_loadu_si512(right + p * 2 * PANEL);
            b3 = (__m512bh)_mm512_loadu_si512(right + p * 2 * PANEL + PANEL);
        }
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            int32_t pair;
            __builtin_memcpy(&pair, f->rows[i] + 2 * p, sizeof pair);
            const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
            sums[i][0] = _mm512_dpbf16_ps(sums[i][0], x, b0);
            sums[i][1] = _mm512_dpbf16_ps(sums[i][1], x, b1);
            if (is_wide) {
                sums[i][2] = _mm512_dpbf16_ps(sums[i][2], x, b2);
                sums[i][3] = _mm512_dpbf16_ps(sums[i][3], x, b3);
            }
        }
    }
}

/*
 * Sums of products of `rows` (at most 6) rows of pairs with 2 or 4 vectors of columns:
 *     tile[i][16 j + lane] = sum over p of a[i][2 p] b_j[p][lane][0] + a[i][2 p + 1] b_j[p][lane][1]
 * `left` holds columns 0 to 31 of each pair of depth, `right` 32 to 63. Each sum runs over the depth in order, so a
 * row's result doesn't depend on the rows beside it; then over that of `further`, if there is any. If it `goes_on`, the
 * sums begin with what the tile holds. A cache line from `ahead` on is asked for with each pair: what a later call reads.
 */
INLINE void multiply(
    const int rows, const int is_wide, const Factors *f, const Factors *further, int goes_on, float tile[][2 * PANEL],
    const bf16 *ahead
) {
    __m512 sums[6][4];
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            sums[i][j] = goes_on && (j < 2 || is_wide) ? _mm512_loadu_ps(tile[i] + j * LANES) : _mm512_setzero_ps();
    accumulate(rows, is_wide, f, ahead, sums);
    if (further != 0) accumulate(rows, is_wide, further, further->left, sums);
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            if (j < 2 || is_wide) _mm512_storeu_ps(tile[i] + j * LANES, sums[i][j]);
}

INLINE void multiply_some(
    int rows, const int is_wide, const Factors *f, const Factors *further, int goes_on, float tile[][2 * PANEL],
    const bf16 *ahead
) {
    switch (rows) {
    case 1: multiply(1, is_wide, f, further, goes_on, tile, ahead); break;
    case 2: multiply(2, is_wide, f, further, goes_on, tile, ahead); break;
    case 3: multiply(3, is_wide, f, further, goes_on, tile, ahead); break;
    case 4: multiply(4, is_wide, f, further, goes_on, tile, ahead); break;
    case 5: multiply(5, is_wide, f, further, goes_on, tile, ahead); break;
    default: multiply(6, is_wide, f, further, goes_on, tile, ahead); break;
    }
}

#endif
