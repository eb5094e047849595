/*
 * What a decoder layer is put together from. Each part is called by all threads of a team, which share its work; but for
 * attention's, nobody waits for the others at its end.
 */
#ifndef TUNESMITH_PARTS_H
#define TUNESMITH_PARTS_H

#include "bf16.h"

/* What becomes of a product's sums. */
enum {
    STORED = 0, /* rounded to bf16 */
    ADDED = 1,  /* rounded, then `other` is added and the sum rounded: a residual */
    GATED = 2,  /* silu(first weight's) times the second weight's, each step rounded */
    WIDE = 3,   /* float32 */
    UPDATED = 4 /* added to `other` before anything is rounded: what a narrow product adds to a wide one's result */
};

/*
 * A second product of some rows, whose sums go on where the first one's end: what an adapter adds to a frozen weight.
 * Where the first is gated, `second` belongs to its second weight.
 */
typedef struct {
    const bf16 *x, *weight, *second;
    long first, end; /* rows of the first product; `x` begins with `first` */
    long depth, x_stride;
} Further;

typedef struct {
    const bf16 *x;
    const bf16 *weight, *second;
    const float *bias, *second_bias;
    const bf16 *other;
    void *out;
    long rows, depth, outputs, x_stride, other_stride, out_stride, kind;
    const Further *further; /* in the order of their rows, of which each has one at most */
    long further_count;
} Product;

void product_part(const Product *p);

/*
 * x / rms(x) * factors for outer x inner vectors of `size` numbers (Zhang and Sennrich 2019, arXiv:1910.07467).
 * Vectors of one outer row lie one after the other. `inverses`, if it is there, takes each vector's 1 / rms.
 */
typedef struct {
    const bf16 *x;
    const float *factors;
    bf16 *out;
    float *inverses;
    long outer, inner, size, x_stride, out_stride;
    float epsilon;
} Norm;

void norm_part(const Norm *n);

/*
 * Queries and keys are turned by their positions, in place, and keys and values kept in pages.
 *
 * together: (rows, heads + 2 key_heads, size), queries, keys and values; cosines, sines: (rows, size), the first half of
 * the sines with its sign turned; keys, values: (pages, key_heads, 64, size); slots: (rows,), page times 64 plus place
 * in the page.
 */
typedef struct {
    bf16 *together;
    const bf16 *cosines, *sines;
    bf16 *keys, *values;
    const int64_t *slots;
    long rows, heads, key_heads, size;
} Turning;

void turn_and_keep_part(const Turning *t);

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

/* All threads have ended their part when this returns. */
void attend_part(const Attention *a);

#endif
