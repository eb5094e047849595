/*
 * Attention of a token tree's segments to their own past and to the segments above them, forward and backward. Keys of a
 * path lie in stretches of the flat batch and are gathered 64 at a time. Probabilities are made again for the backward
 * pass from each query's log-sum-exp (Dao et al. 2022, arXiv:2205.14135). Sums are in float32.
 */
#include "attention.h"

enum { MOST_QUERIES = 64 };

/* Consecutive tokens of one segment, which see `keys` keys: those of the stretches, in order. */
typedef struct {
    int32_t first_token, tokens, stretches_begin, keys;
} Tile;

typedef struct {
    const bf16 *query, *key, *value; /* (tokens, heads or key_heads, size) */
    bf16 *out;                       /* (tokens, heads, size) */
    float *logs;                     /* (tokens, heads) */
    const bf16 *out_gradient;
    bf16 *query_gradient;
    float *sums; /* (parts, 2, tokens, key_heads, size), zeros: gradients of keys and values */
    const Tile *tiles;
    const int32_t *stretches; /* first token and length of each */
    const long *parts;        /* where each part's tiles begin, and the end of the last */
    long tile_count, part_count, tokens, heads, key_heads, size, window;
    float scale;
} Tree;

/* The tile's queries that share one key head, as they stand in memory. */
typedef struct {
    long count, at[MOST_QUERIES], position[MOST_QUERIES];
} Queries;

INLINE void find_queries(const Tree *t, const Tile *tile, long key_head, Queries *found) {
    const long group = t->heads / t->key_heads;
    found->count = tile->tokens * group;
    for (long i = 0; i < found->count; i++) {
        found->at[i] = (tile->first_token + i / group) * t->heads + key_head * group + i % group;
        found->position[i] = tile->keys - tile->tokens + i / group;
    }
}

/* Find the tokens of keys `first` to `end` of a path. */
INLINE void find_keys(const int32_t *stretch, long first, long end, long *tokens) {
    long before = 0, found = 0;
    for (; found < end - first; before += stretch[1], stretch += 2)
        for (long i = first + found - before; i < stretch[1] && found < end - first; i++, found++)
            tokens[found] = stretch[0] + i;
}

INLINE void gather(const Tree *t, const bf16 *from, long key_head, const long *tokens, long count, bf16 *to) {
    for (long i = 0; i < count; i++)
        __builtin_memcpy(to + i * t->size, from + (tokens[i] * t->key_heads + key_head) * t->size, t->size * sizeof(bf16));
}

INLINE long first_key(const Tree *t, const Tile *tile) {
    const long position = tile->keys - tile->tokens;
    return t->window > 0 && position >= t->window ? (position - t->window + 1) / PAGE * PAGE : 0;
}

static void attend_tile(const Tree *t, const Tile *tile, long key_head) {
    const long size = t->size;
    Queries queries;
    find_queries(t, tile, key_head, &queries);
    float sums[MOST_QUERIES][MOST_SIZE], scores[6][PAGE], most[MOST_QUERIES], total[MOST_QUERIES];
    bf16 keys[PAGE * MOST_SIZE], values[PAGE * MOST_SIZE], packed[PAGE * MOST_SIZE];
    for (long i = 0; i < queries.count; i++) {
        most[i] = -1e30f;
        total[i] = 0;
        for (long j = 0; j < size; j += LANES) _mm512_storeu_ps(sums[i] + j, _mm512_setzero_ps());
    }
    for (long first = first_key(t, tile); first < tile->keys; first += PAGE) {
        const long count = tile->keys - first < PAGE ? tile->keys - first : PAGE;
        long tokens[PAGE];
        find_keys(t->stretches + 2 * tile->stretches_begin, first, first + count, tokens);
        gather(t, t->key, key_head, tokens, count, keys);
        gather(t, t->value, key_head, tokens, count, values);
        pack_keys(keys, values, count, size, packed);
        for (long begin = 0; begin < queries.count; begin += 6) {
            const int some = queries.count - begin < 6 ? (int)(queries.count - begin) : 6;
            Factors f = {.left = packed, .right = packed + size * PANEL, .pairs = size / 2};
            float decay[6];
            for (int i = 0; i < some; i++) f.rows[i] = t->query + queries.at[begin + i] * size;
            multiply_some(some, 1, &f, 0, 0, scores, packed);
            for (int i = 0; i < some; i++)
                decay[i] = weigh(
                    scores[i], first, queries.position[begin + i], t->window, t->scale, most + begin + i,
                    total + begin + i
                );
            long part = 0;
            for (; part + 4 * LANES <= size; part += 4 * LANES)
                add_some_values(some, 4, scores, values + part, count, size, sums[begin] + part, decay, 0);
            if (part < size) add_some_values(some, 2, scores, values + part, count, size, sums[begin] + part, decay, 0);
        }
    }
    for (long i = 0; i < queries.count; i++) {
        const __m512 whole = _mm512_set1_ps(1.0f / total[i]);
        for (long j = 0; j < size; j += LANES)
            store_bf16(t->out + queries.at[i] * size + j, _mm512_mul_ps(_mm512_loadu_ps(sums[i] + j), whole));
        t->logs[queries.at[i]] = most[i] + __builtin_logf(total[i]);
    }
}

void attend_tree(const Tree *t, long threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
    for (long item = 0; item < t->tile_count * t->key_heads; item++)
        attend_tile(t, t->tiles + item / t->key_heads, item % t->key_heads);
}

/* From scores and the gradients of probabilities (64 each) to probabilities and the gradients of scores, in place. */
INLINE void slopes(float *scores, float *gradients, long first, long position, long window, float scale, float log, float delta) {
    const __m512i steps = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const long last = position - first, before = window > 0 ? last - window : -1;
    for (int j = 0; j < PAGE; j += LANES) {
        const __m512i key = _mm512_add_epi32(steps, _mm512_set1_epi32(j));
        const __mmask16 seen = _mm512_cmple_epi32_mask(key, _mm512_set1_epi32((int)(last < PAGE ? last : PAGE))) &
                               _mm512_cmpgt_epi32_mask(key, _mm512_set1_epi32((int)(before > -1 ? before : -1)));
        const __m512 score = _mm512_fmsub_ps(_mm512_loadu_ps(scores + j), _mm512_set1_ps(scale), _mm512_set1_ps(log));
        const __m512 share_of_all = _mm512_maskz_mov_ps(seen, exponential(score));
        const __m512 slope = _mm512_sub_ps(_mm512_loadu_ps(gradients + j), _mm512_set1_ps(delta));
        const __m512 scaled = _mm512_mul_ps(_mm512_mul_ps(share_of_all, slope), _mm512_set1_ps(scale));
        _mm512_storeu_ps(scores + j, share_of_all);
        _mm512_storeu_ps(gradients + j, _mm512_maskz_mov_ps(seen, scaled));
    }
}

/* Add to up to 6 keys' sums what all queries give them: weight times the query's row, 16 x `vectors` numbers. */
INLINE void give_keys(
    const int keys, const int vectors, long queries, float (*weights)[PAGE], long first, float (*rows)[MOST_SIZE],
    long part, float *const *sums
) {
    __m512 own[6][4];
#pragma GCC unroll 6
    for (int i = 0; i < keys; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) own[i][j] = _mm512_loadu_ps(sums[i] + part + j * LANES);
    for (long query = 0; query < queries; query++) {
        __m512 row[4];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) row[j] = _mm512_loadu_ps(rows[query] + part + j * LANES);
#pragma GCC unroll 6
        for (int i = 0; i < keys; i++) {
            const __m512 weight = _mm512_set1_ps(weights[query][first + i]);
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++) own[i][j] = _mm512_fmadd_ps(weight, row[j], own[i][j]);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < keys; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) _mm512_storeu_ps(sums[i] + part + j * LANES, own[i][j]);
}

INLINE void give_some_keys(
    int keys, const int vectors, long queries, float (*weights)[PAGE], long first, float (*rows)[MOST_SIZE], long part,
    float *const *sums
) {
    switch (keys) {
    case 1: give_keys(1, vectors, queries, weights, first, rows, part, sums); break;
    case 2: give_keys(2, vectors, queries, weights, first, rows, part, sums); break;
    case 3: give_keys(3, vectors, queries, weights, first, rows, part, sums); break;
    case 4: give_keys(4, vectors, queries, weights, first, rows, part, sums); break;
    case 5: give_keys(5, vectors, queries, weights, first, rows, part, sums); break;
    default: give_keys(6, vectors, queries, weights, first, rows, part, sums); break;
    }
}

static void pull_tile(const Tree *t, const Tile *tile, long key_head, float *own) {
    const long size = t->size;
    const float ones[6] = {1, 1, 1, 1, 1, 1};
    Queries queries;
    find_queries(t, tile, key_head, &queries);
    float rows[MOST_QUERIES][MOST_SIZE], outs[MOST_QUERIES][MOST_SIZE], sums[MOST_QUERIES][MOST_SIZE];
    float weights[MOST_QUERIES][PAGE], slope[MOST_QUERIES][PAGE], delta[MOST_QUERIES];
    bf16 keys[PAGE * MOST_SIZE], values[PAGE * MOST_SIZE], packed[PAGE * MOST_SIZE], packed_values[PAGE * MOST_SIZE];
    for (long i = 0; i < queries.count; i++) {
        const long at = queries.at[i] * size;
        __m512 along = _mm512_setzero_ps();
        for (long j = 0; j < size; j += LANES) {
            const __m512 gradient = load_bf16(t->out_gradient + at + j);
            along = _mm512_fmadd_ps(gradient, load_bf16(t->out + at + j), along);
            _mm512_storeu_ps(outs[i] + j, gradient);
            _mm512_storeu_ps(rows[i] + j, load_bf16(t->query + at + j));
            _mm512_storeu_ps(sums[i] + j, _mm512_setzero_ps());
        }
        delta[i] = _mm512_reduce_add_ps(along);
    }
    for (long first = first_key(t, tile); first < tile->keys; first += PAGE) {
        const long count = tile->keys - first < PAGE ? tile->keys - first : PAGE;
        long tokens[PAGE];
        find_keys(t->stretches + 2 * tile->stretches_begin, first, first + count, tokens);
        gather(t, t->key, key_head, tokens, count, keys);
        gather(t, t->value, key_head, tokens, count, values);
        pack_keys(keys, values, count, size, packed);
        pack_keys(values, keys, count, size, packed_values);
        for (long begin = 0; begin < queries.count; begin += 6) {
            const int some = queries.count - begin < 6 ? (int)(queries.count - begin) : 6;
            Factors f = {.left = packed, .right = packed + size * PANEL, .pairs = size / 2};
            Factors g = {.left = packed_values, .right = packed_values + size * PANEL, .pairs = size / 2};
            for (int i = 0; i < some; i++) {
                f.rows[i] = t->query + queries.at[begin + i] * size;
                g.rows[i] = t->out_gradient + queries.at[begin + i] * size;
            }
            multiply_some(some, 1, &f, 0, 0, weights + begin, packed);
            multiply_some(some, 1, &g, 0, 0, slope + begin, packed);
            for (int i = 0; i < some; i++)
                slopes(
                    weights[begin + i], slope[begin + i], first, queries.position[begin + i], t->window, t->scale,
                    t->logs[queries.at[begin + i]], delta[begin + i]
                );
            long part = 0;
            for (; part + 4 * LANES <= size; part += 4 * LANES)
                add_some_values(some, 4, slope + begin, keys + part, count, size, sums[begin] + part, ones, 0);
            if (part < size) add_some_values(some, 2, slope + begin, keys + part, count, size, sums[begin] + part, ones, 0);
        }
        for (long begin = 0; begin < count; begin += 6) {
            const int some = count - begin < 6 ? (int)(count - begin) : 6;
            float *key_sums[6], *value_sums[6];
            for (int i = 0; i < some; i++) {
                key_sums[i] = own + (tokens[begin + i] * t->key_heads + key_head) * size;
                value_sums[i] = key_sums[i] + t->tokens * t->key_heads * size;
            }
            for (long part = 0; part < size;) {
                const int is_whole = part + 4 * LANES <= size;
                if (is_whole) {
                    give_some_keys(some, 4, queries.count, slope, begin, rows, part, key_sums);
                    give_some_keys(some, 4, queries.count, weights, begin, outs, part, value_sums);
                } else {
                    give_some_keys(some, 2, queries.count, slope, begin, rows, part, key_sums);
                    give_some_keys(some, 2, queries.count, weights, begin, outs, part, value_sums);
                }
                part += (is_whole ? 4 : 2) * LANES;
            }
        }
    }
    for (long i = 0; i < queries.count; i++)
        for (long j = 0; j < size; j += LANES)
            store_bf16(t->query_gradient + queries.at[i] * size + j, _mm512_loadu_ps(sums[i] + j));
}

/* Each part of the tiles adds to sums of its own, so what is added to what doesn't depend on chance. */
void pull_tree(const Tree *t, long threads) {
    const long part_size = 2 * t->tokens * t->key_heads * t->size;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(dynamic, 1)
        for (long part = 0; part < t->part_count; part++)
            for (long tile = t->parts[part]; tile < t->parts[part + 1]; tile++)
                for (long key_head = 0; key_head < t->key_heads; key_head++)
                    pull_tile(t, t->tiles + tile, key_head, t->sums + part * part_size);
        long first, end;
        share(part_size / LANES, &first, &end);
        for (long i = first * LANES; i < end * LANES; i += LANES) {
            __m512 sum = _mm512_loadu_ps(t->sums + i);
            for (long part = 1; part < t->part_count; part++)
                sum = _mm512_add_ps(sum, _mm512_loadu_ps(t->sums + part * part_size + i));
            _mm512_storeu_ps(t->sums + i, sum);
        }
    }
}
