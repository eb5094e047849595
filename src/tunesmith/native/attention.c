/*
 * Attention of queries to keys and values in pages of 64 tokens, one page after the other with a running maximum
 * (Dao et al. 2022, arXiv:2205.14135). Sums are in float32. A query's result depends on its own text alone.
 */
#include "attention.h"

enum { MOST_QUERIES = 24 };

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
