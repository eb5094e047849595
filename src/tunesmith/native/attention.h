/* Parts of attention: keys are read a page at a time, queries up to 6. */
#ifndef TUNESMITH_ATTENTION_H
#define TUNESMITH_ATTENTION_H

#include "bf16.h"

/* Numbers that a head has at most (a multiple of 32). */
enum { MOST_SIZE = 256 };

/* Ask for numbers that are needed soon. */
INLINE void fetch(const bf16 *from, long count) {
    for (long i = 0; i < count; i += 64 / (long)sizeof(bf16)) __builtin_prefetch(from + i);
}

/* Columns of a 16 x 16 block of 32-bit numbers become its rows. */
INLINE void transpose16(const uint32_t *from, long stride, uint32_t *to, long to_stride) {
    __m512i a[16], b[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(from + i * stride);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        a[4 * i] = _mm512_unpacklo_epi64(b[4 * i], b[4 * i + 2]);
        a[4 * i + 1] = _mm512_unpackhi_epi64(b[4 * i], b[4 * i + 2]);
        a[4 * i + 2] = _mm512_unpacklo_epi64(b[4 * i + 1], b[4 * i + 3]);
        a[4 * i + 3] = _mm512_unpackhi_epi64(b[4 * i + 1], b[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        b[i] = _mm512_shuffle_i32x4(a[i], a[4 + i], 0x88);
        b[4 + i] = _mm512_shuffle_i32x4(a[i], a[4 + i], 0xdd);
        b[8 + i] = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0x88);
        b[12 + i] = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        _mm512_storeu_si512(to + i * to_stride, _mm512_shuffle_i32x4(b[i], b[8 + i], 0x88));
        _mm512_storeu_si512(to + (4 + i) * to_stride, _mm512_shuffle_i32x4(b[4 + i], b[12 + i], 0x88));
        _mm512_storeu_si512(to + (8 + i) * to_stride, _mm512_shuffle_i32x4(b[i], b[8 + i], 0xdd));
        _mm512_storeu_si512(to + (12 + i) * to_stride, _mm512_shuffle_i32x4(b[4 + i], b[12 + i], 0xdd));
    }
}

/*
 * Lay the first `count` keys of a page (64, size) out as two panels, as `multiply` reads them; ask for their values. What
 * is asked for in one go is waited for, so this is done piece by piece.
 */
INLINE void pack_keys(const bf16 *keys, const bf16 *values, long count, long size, bf16 *packed) {
    const long pairs = size / 2;
    for (long group = 0; group * LANES < count; group++)
        for (long p = 0; p < pairs; p += LANES) {
            fetch(values + group * LANES * size + p * 2 * LANES, 2 * LANES * LANES);
            const uint32_t *from = (const uint32_t *)keys + group * LANES * pairs + p;
            uint32_t *to = (uint32_t *)packed + (group / 2) * pairs * PANEL + p * PANEL + (group % 2) * LANES;
            transpose16(from, pairs, to, PANEL);
        }
}

/*
 * Add weights times values of `count` keys to up to 6 queries' sums, 16 x `vectors` numbers of each. As much is asked for
 * from `ahead` on, unless that is 0.
 */
INLINE void add_values(
    const int queries, const int vectors, float (*weights)[PAGE], const bf16 *values, long count, long size, float *sums,
    const float *decay, const bf16 *ahead
) {
    __m512 own[6][4];
#pragma GCC unroll 6
    for (int i = 0; i < queries; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++)
            own[i][j] = _mm512_mul_ps(_mm512_loadu_ps(sums + i * MOST_SIZE + j * LANES), _mm512_set1_ps(decay[i]));
    for (long key = 0; key < count; key++) {
        __m512 value[4];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) value[j] = load_bf16(values + key * size + j * LANES);
        if (ahead != 0)
#pragma GCC unroll 2
            for (int j = 0; j < vectors; j += 2) __builtin_prefetch(ahead + key * size + j * LANES);
#pragma GCC unroll 6
        for (int i = 0; i < queries; i++) {
            const __m512 weight = _mm512_set1_ps(weights[i][key]);
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++) own[i][j] = _mm512_fmadd_ps(weight, value[j], own[i][j]);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < queries; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) _mm512_storeu_ps(sums + i * MOST_SIZE + j * LANES, own[i][j]);
}

INLINE void add_some_values(
    int queries, const int vectors, float (*weights)[PAGE], const bf16 *values, long count, long size, float *sums,
    const float *decay, const bf16 *ahead
) {
    switch (queries) {
    case 1: add_values(1, vectors, weights, values, count, size, sums, decay, ahead); break;
    case 2: add_values(2, vectors, weights, values, count, size, sums, decay, ahead); break;
    case 3: add_values(3, vectors, weights, values, count, size, sums, decay, ahead); break;
    case 4: add_values(4, vectors, weights, values, count, size, sums, decay, ahead); break;
    case 5: add_values(5, vectors, weights, values, count, size, sums, decay, ahead); break;
    default: add_values(6, vectors, weights, values, count, size, sums, decay, ahead); break;
    }
}

/* Turn one query's scores of a page into weights; return by what sums of earlier pages shrink. */
INLINE float weigh(float *scores, long first_key, long position, long window, float scale, float *most, float *total) {
    const __m512 hidden = _mm512_set1_ps(-1e30f);
    const __m512i steps = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const long last = position - first_key, before = window > 0 ? last - window : -1;
    __m512 parts[4], largest = hidden;
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const __m512i key = _mm512_add_epi32(steps, _mm512_set1_epi32(j * LANES));
        const __mmask16 seen = _mm512_cmple_epi32_mask(key, _mm512_set1_epi32((int)(last < PAGE ? last : PAGE))) &
                               _mm512_cmpgt_epi32_mask(key, _mm512_set1_epi32((int)(before > -1 ? before : -1)));
        const __m512 score = _mm512_mul_ps(_mm512_loadu_ps(scores + j * LANES), _mm512_set1_ps(scale));
        parts[j] = _mm512_mask_mov_ps(hidden, seen, score);
        largest = _mm512_max_ps(largest, parts[j]);
    }
    const float now = _mm512_reduce_max_ps(largest), up_to_now = now > *most ? now : *most;
    __m512 sum = _mm512_setzero_ps();
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const __m512 weight = exponential(_mm512_sub_ps(parts[j], _mm512_set1_ps(up_to_now)));
        _mm512_storeu_ps(scores + j * LANES, weight);
        sum = _mm512_add_ps(sum, weight);
    }
    const float decay = _mm512_cvtss_f32(exponential(_mm512_set1_ps(*most - up_to_now)));
    *total = *total * decay + _mm512_reduce_add_ps(sum);
    *most = up_to_now;
    return decay;
}

#endif
