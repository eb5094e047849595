/*
 * Attention of queries to keys and values in pages of 64 tokens, one page after the other with a running maximum
 * (Dao et al. 2022, arXiv:2205.14135). Sums are in float32. A query's result depends on its own text alone.
 */
#include "attention.h"
#include "parts.h"

enum { MOST_QUERIES = 24 };

/* The number of the first page that a tile sees anything of. */
INLINE long first_page(const Attention *a, const Tile *tile) {
    return a->window > 0 && tile->position >= a->window ? (tile->position - a->window + 1) / PAGE : 0;
}

/* Where keys (and values) of one head begin in a tile's page of this number. */
INLINE long place_of(const Attention *a, const Tile *tile, long key_head, long number) {
    return (a->pages[tile->pages_begin + number] * a->key_heads + key_head) * PAGE * a->size;
}

/* All queries of a tile that share one key head. The keys that this thread reads next begin at `after`. */
static void attend_tile(const Attention *a, const Tile *tile, long key_head, long after) {
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
    for (long number = first_page(a, tile); number <= last / PAGE; number++) {
        const long at = place_of(a, tile, key_head, number);
        const long next = number < last / PAGE ? place_of(a, tile, key_head, number + 1) : after;
        /* What no query sees isn't read. */
        const long seen = last + 1 - number * PAGE, keys = seen < PAGE ? seen : PAGE;
        pack_keys(a->keys + at, a->values + at, keys, size, packed);
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
                add_some_values(
                    count, 4, scores, a->values + at + part, keys, size, sums[begin] + part, decay, a->keys + next + part
                );
            if (part < size)
                add_some_values(
                    count, 2, scores, a->values + at + part, keys, size, sums[begin] + part, decay, a->keys + next + part
                );
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

void attend_part(const Attention *a) {
    const long threads = omp_get_num_threads();
    /* A page's heads lie side by side, so one thread reads them one after the other, unless there are too few texts. */
    const long together = a->tile_count >= 4 * threads ? a->key_heads : 1, items = a->tile_count * a->key_heads / together;
#pragma omp for schedule(dynamic, 1)
    for (long item = 0; item < items; item++)
        for (long i = item * together; i < (item + 1) * together; i++) {
            /* After its item, this thread will probably get the one that is as many items behind as there are threads. */
            const long likely = i + 1 < (item + 1) * together ? i + 1 : (item + threads) * together;
            const long then = likely < a->tile_count * a->key_heads ? likely : i;
            const Tile *coming = a->tiles + then / a->key_heads;
            const long after = place_of(a, coming, then % a->key_heads, first_page(a, coming));
            attend_tile(a, a->tiles + i / a->key_heads, i % a->key_heads, after);
        }
}

/* Let queries attend with `threads` threads. */
void attend(const Attention *a, long threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
    attend_part(a);
}
