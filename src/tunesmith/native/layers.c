/*
 * Consecutive decoder layers of one step: threads begin and end once, and meet where one part needs all of the part
 * before. What is computed is, number for number, what the parts compute one after the other.
 */
#include "parts.h"

/* What a layer is: its weights, the shape of its heads, and where its keys and values are kept. */
typedef struct {
    const float *before, *between, *query_norm, *key_norm; /* factors of normalisations; of single heads: 0 for none */
    Product qkv, out, gated, down;                         /* without rows */
    bf16 *keys, *values;
    long heads, key_heads, size, window;
    float before_epsilon, between_epsilon, query_epsilon, key_epsilon, scale;
} Layer;

/* What an adapter adds to one product: x A^T of its rank, padded to an even one, and that times B^T. */
typedef struct {
    const bf16 *a, *b, *second_b; /* none where the adapter leaves the product alone */
    long rank;
} Narrow;

/* An adapter's part in one layer. */
typedef struct {
    Narrow qkv, out, gated, down;
} NarrowLayer;

/* Rows that go through an adapter. */
typedef struct {
    const NarrowLayer *layers;
    long first, end;
} Adapted;

/* What all layers of a step share. */
typedef struct {
    const bf16 *hidden; /* (rows, width), of the first layer */
    bf16 *result;       /* likewise, of each layer; not the same place */
    bf16 *normal, *together, *attended, *inner; /* room for the widest layer's */
    bf16 *narrow;                               /* likewise, (rows, highest rank) */
    const Adapted *adapted;                     /* in the order of their rows, at most MOST_ADAPTED */
    const bf16 *cosines, *sines;
    const int64_t *slots;
    const int32_t *pages;
    const Tile *tiles;
    long rows, tile_count, adapted_count, highest_rank;
} Step;

enum { MOST_ADAPTED = 256 };

/* The part that adapters have in a product of layer `index`; `place` is that of the product in `NarrowLayer`. */
INLINE const Narrow *narrow_of(const Adapted *adapted, long index, long place) {
    return (const Narrow *)(adapted->layers + index) + place;
}

/* One of a layer's products, by its place in `NarrowLayer`, and what adapters add to it. Threads meet in between. */
static void multiply_rows(
    Product p, const Step *s, long index, long place, const bf16 *x, bf16 *out, const bf16 *other
) {
    Further further[MOST_ADAPTED];
    for (const Adapted *one = s->adapted; one < s->adapted + s->adapted_count; one++) {
        const Narrow *narrow = narrow_of(one, index, place);
        if (narrow->a == 0) continue;
        const Product image = {
            .x = x + one->first * p.depth, .weight = narrow->a, .out = s->narrow + one->first * s->highest_rank,
            .rows = one->end - one->first, .depth = p.depth, .outputs = narrow->rank, .x_stride = p.depth,
            .out_stride = narrow->rank, .kind = STORED,
        };
        product_part(&image);
        further[p.further_count++] = (Further){
            .x = image.out, .weight = narrow->b, .second = narrow->second_b, .first = one->first, .end = one->end,
            .depth = narrow->rank, .x_stride = narrow->rank,
        };
    }
    if (p.further_count > 0) {
        p.further = further;
#pragma omp barrier
    }
    p.x = x;
    p.x_stride = p.depth;
    p.out = out;
    p.other = other;
    p.out_stride = p.other_stride = p.outputs;
    p.rows = s->rows;
    product_part(&p);
#pragma omp barrier
}

INLINE void normalise(const Step *s, const bf16 *x, const float *factors, float epsilon, long size) {
    const Norm norm = {
        .x = x, .factors = factors, .out = s->normal, .outer = s->rows, .inner = 1, .size = size, .x_stride = size,
        .out_stride = size, .epsilon = epsilon,
    };
    norm_part(&norm);
}

INLINE void normalise_heads(
    const Layer *l, const Step *s, const float *factors, float epsilon, long first, long heads
) {
    bf16 *x = s->together + first * l->size;
    const Norm norm = {
        .x = x, .factors = factors, .out = x, .outer = s->rows, .inner = heads, .size = l->size,
        .x_stride = l->qkv.outputs, .out_stride = l->qkv.outputs, .epsilon = epsilon,
    };
    norm_part(&norm);
}

static void compute(const Layer *l, long index, const Step *s, const bf16 *hidden) {
    const Turning turning = {
        .together = s->together, .cosines = s->cosines, .sines = s->sines, .keys = l->keys, .values = l->values,
        .slots = s->slots, .rows = s->rows, .heads = l->heads, .key_heads = l->key_heads, .size = l->size,
    };
    const Attention attention = {
        .queries = s->together, .keys = l->keys, .values = l->values, .pages = s->pages, .tiles = s->tiles,
        .out = s->attended, .tile_count = s->tile_count, .query_stride = l->qkv.outputs, .heads = l->heads,
        .key_heads = l->key_heads, .size = l->size, .window = l->window, .scale = l->scale,
    };
    const long width = l->qkv.depth;
    normalise(s, hidden, l->before, l->before_epsilon, width);
#pragma omp barrier
    multiply_rows(l->qkv, s, index, 0, s->normal, s->together, 0);
    if (l->query_norm != 0) {
        normalise_heads(l, s, l->query_norm, l->query_epsilon, 0, l->heads);
        normalise_heads(l, s, l->key_norm, l->key_epsilon, l->heads, l->key_heads);
#pragma omp barrier
    }
    turn_and_keep_part(&turning);
#pragma omp barrier
    attend_part(&attention);
    multiply_rows(l->out, s, index, 1, s->attended, s->result, hidden);
    normalise(s, s->result, l->between, l->between_epsilon, width);
#pragma omp barrier
    multiply_rows(l->gated, s, index, 2, s->normal, s->inner, 0);
    multiply_rows(l->down, s, index, 3, s->inner, s->result, s->result);
}

void decoder_layers(const Layer *layers, long count, const Step *step, long threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
    for (long i = 0; i < count; i++) compute(layers + i, i, step, i == 0 ? step->hidden : step->result);
}
