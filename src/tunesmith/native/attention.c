/*
 * Attention of queries to keys and values in pages of 64 tokens, one page after the other with a running maximum
 * (Dao et al. 2022, arXiv:2205.14135). Sums are in float32. A query's result depends on its own text alone.
 */
#include "bf16.h"

enum { PAGE = 64, MOST_SIZE = 256, MOST_QUERIES = 24 };

/* Of a tile: consecutive rows of one text. */
typedef struct {
    int32_t first_row, rows, pages_begin, position;
} Tile;

typedef struct {
    const bf16 *queries; /* (rows, ..., size), heads one after the other */
    const bf16 *keys, *values; /* (pages, key_heads, 64, size); size is a multiple of 32 */
    const int32_t *pages; /* of all texts one after the other */
    const Tile *tiles;
    bf16 *out; /* (rows, heads, size) */
    long tile_count, query_stride, heads, key_heads, size, window;
    float scale;
} Attention;

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

/* Lay the first `count` keys of a page (64, size) out as two panels, as `multiply` reads them; fetch their values. */
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

/* Add weights times values of `count` keys to up to 6 queries' sums, 16 x `vectors` numbers of each. */
INLINE void add_values(
    const int queries, const int vectors, float (*weights)[PAGE], const bf16 *values, long count, long size, float *sums,
    const float *decay
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
    const float *decay
) {
    switch (queries) {
    case 1: add_values(1, vectors, weights, values, count, size, sums, decay); break;
    case 2: add_values(2, vectors, weights, values, count, size, sums, decay); break;
    case 3: add_values(3, vectors, weights, values, count, size, sums, decay); break;
    case 4: add_values(4, vectors, weights, values, count, size, sums, decay); break;
    case 5: add_values(5, vectors, weights, values, count, size, sums, decay); break;
    default: add_values(6, vectors, weights, values, count, size, sums, decay); break;
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

/* All queries of a tile that share one key head. */
static void attend_tile(const Attention *a, const Tile *tile, long key_head) {
    const long group = a->heads / a->key_heads, size = a->size, queries = tile->rows * group;
    const bf16 *query[MOST_QUERIES];
    float sums[MOST_QUERIES][MOST_SIZE], scores[6][PAGE], most[MOST_QUERIES], total[MOST_QUERIES];
    bf16 packed[PAGE * MOST_SIZE];
    for (long i = 0; i < queries; i++) {
        const long row = tile->first_row + i / group, head = key_head * group + i % group;
        query[i] = a->queries + row * a->query_stride + head * size;
        most[i] = -1e30f;
        total[i] = 0;
        for (long j = 0; j < size; j += LANES) _mm512_storeu_ps(sums[i] + j, _mm512_setzero_ps());
    }
    const long last = tile->position + tile->rows - 1;
    const long first = a->window > 0 && tile->position >= a->window ? tile->position - a->window + 1 : 0;
    for (long number = first / PAGE; number <= last / PAGE; number++) {
        const long page = a->pages[tile->pages_begin + number], at = (page * a->key_heads + key_head) * PAGE * size;
        /* What no query sees isn't read. */
        const long seen = last + 1 - number * PAGE, keys = seen < PAGE ? seen : PAGE;
        pack_keys(a->keys + at, a->values + at, keys, size, packed);
        if (number < last / PAGE) {
            const long next = a->pages[tile->pages_begin + number + 1];
            fetch(a->keys + (next * a->key_heads + key_head) * PAGE * size, PAGE * size);
        }
        for (long begin = 0; begin < queries; begin += 6) {
            const int count = queries - begin < 6 ? (int)(queries - begin) : 6;
            float decay[6];
            Factors f = {.left = packed, .right = packed + size * PANEL, .pairs = size / 2};
            for (int i = 0; i < count; i++) f.rows[i] = query[begin + i];
            multiply_some(count, 1, &f, 0, 0, scores, packed);
            for (int i = 0; i < count; i++) {
                const long position = tile->position + (begin + i) / group;
                decay[i] = weigh(
                    scores[i], number * PAGE, position, a->window, a->scale, most + begin + i, total + begin + i
                );
            }
            long part = 0;
            for (; part + 4 * LANES <= size; part += 4 * LANES)
                add_some_values(count, 4, scores, a->values + at + part, keys, size, sums[begin] + part, decay);
            if (part < size) add_some_values(count, 2, scores, a->values + at + part, keys, size, sums[begin] + part, decay);
        }
    }
    for (long i = 0; i < queries; i++) {
        const long row = tile->first_row + i / group, head = key_head * group + i % group;
        const __m512 share_of_all = _mm512_set1_ps(1.0f / total[i]);
        bf16 *out = a->out + (row * a->heads + head) * size;
        for (long j = 0; j < size; j += LANES)
            store_bf16(out + j, _mm512_mul_ps(_mm512_loadu_ps(sums[i] + j), share_of_all));
    }
}

void attend(const Attention *a, long threads) {
    /* A page's heads lie side by side, so one thread reads them one after the other, unless there are too few texts. */
    const long together = a->tile_count >= 4 * threads ? a->key_heads : 1;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
    for (long item = 0; item < a->tile_count * a->key_heads / together; item++)
        for (long i = item * together; i < (item + 1) * together; i++)
            attend_tile(a, a->tiles + i / a->key_heads, i % a->key_heads);
}
