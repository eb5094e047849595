/*
 * Products of rows with a frozen weight, and what follows a product in a decoder layer.
 *
 * A weight (outputs, depth) lies in panels of 32 outputs: [panel][depth / 2][32][2], outputs beyond the last as zeros,
 * so that a product reads it from its beginning to its end and sums two products in one instruction.
 */
#include "parts.h"

/* Rows whose sums a thread holds at once, and the depth of panels that its cache holds. */
enum { MOST_ROWS = 192, MOST_DEPTH = 2048 };

/* Store `count` (at most 16) results of one row from column `column` on. */
INLINE void finish(const Product *p, long row, long column, long count, __m512 sum) {
    const __mmask16 lanes = count >= LANES ? 0xffff : (__mmask16)((1u << count) - 1);
    if (p->kind == WIDE) {
        _mm512_mask_storeu_ps((float *)p->out + row * p->out_stride + column, lanes, sum);
        return;
    }
    if (p->kind == ADDED || p->kind == UPDATED) {
        const bf16 *other = p->other + row * p->other_stride + column;
        const __m512 before = widen(_mm256_maskz_loadu_epi16(lanes, other));
        sum = _mm512_add_ps(before, p->kind == ADDED ? rounded(sum) : sum);
    }
    _mm256_mask_storeu_epi16((bf16 *)p->out + row * p->out_stride + column, lanes, narrow(sum));
}

INLINE __m512 biased(const float *bias, long column, long outputs, __m512 sum) {
    if (bias == 0) return sum;
    const long count = outputs - column;
    const __mmask16 lanes = count >= LANES ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1);
    return _mm512_add_ps(sum, _mm512_maskz_loadu_ps(lanes, bias + column));
}

/* Return which half of a panel the block should ask for: the first four blocks ask for both panels that come next. */
INLINE const bf16 *coming(const bf16 *left, const bf16 *right, long panel_size, long block) {
    const long distance = right - left == panel_size ? 2 * panel_size : panel_size;
    const bf16 *next = (block & 2 ? right : left) + distance;
    return block < 4 ? next + (block & 1) * panel_size / 2 : left;
}

/* Store what becomes of one row's sums of the panel or panels. */
INLINE void finish_row(const Product *p, const int is_wide, long number, long row, const float *sums) {
    const long column = number * PANEL;
    if (p->kind == GATED) {
        for (long j = 0; j < PANEL && column + j < p->outputs; j += LANES) {
            const __m512 gate = biased(p->bias, column + j, p->outputs, _mm512_loadu_ps(sums + j));
            const __m512 up = biased(p->second_bias, column + j, p->outputs, _mm512_loadu_ps(sums + PANEL + j));
            finish(p, row, column + j, p->outputs - column - j, gated(gate, up));
        }
        return;
    }
    for (long j = 0; j < (is_wide ? 2 : 1) * PANEL && column + j < p->outputs; j += LANES) {
        const __m512 sum = biased(p->bias, column + j, p->outputs, _mm512_loadu_ps(sums + j));
        finish(p, row, column + j, p->outputs - column - j, sum);
    }
}

/* Where rows begin that have another further product than row `from`, or none; that of row `from` is `*found`, or 0. */
INLINE long alike_until(const Product *p, long from, long end, const Further **found) {
    *found = 0;
    for (const Further *one = p->further; one < p->further + p->further_count; one++) {
        if (one->end <= from) continue;
        if (one->first > from) return one->first < end ? one->first : end;
        *found = one;
        return one->end < end ? one->end : end;
    }
    return end;
}

/*
 * Compute the outputs of one panel (or, if `is_wide` and not gated, of two) for rows `first` to `end`, at most
 * MOST_ROWS. Panels that are deeper than the cache holds are read in stretches, each for all rows. Later blocks of rows
 * find the panels in the cache; the first ones ask for the panels that come next.
 */
INLINE void panel(const Product *p, const int is_wide, long number, long first, long end) {
    const long panel_size = p->depth * PANEL;
    const bf16 *left = p->weight + number * panel_size;
    const bf16 *right = p->kind == GATED ? p->second + number * panel_size : left + panel_size;
    const int has_time = end - first > 12 && p->depth <= MOST_DEPTH;
    float tile[MOST_ROWS][2 * PANEL];
    for (long start = 0; start < p->depth; start += MOST_DEPTH) {
        const int is_last = p->depth - start <= MOST_DEPTH;
        Factors own = {.left = left + start * PANEL, .right = right + start * PANEL}, then = {0};
        own.pairs = (is_last ? p->depth - start : MOST_DEPTH) / 2;
        long count = 0;
        for (long from = first, until; from < end; from = until) {
            const Further *further;
            until = alike_until(p, from, end, &further);
            if (further != 0) {
                const long further_size = further->depth * PANEL;
                then.left = further->weight + number * further_size;
                then.right = p->kind == GATED ? further->second + number * further_size : then.left + further_size;
                then.pairs = further->depth / 2;
            }
            /* Blocks as equal as they can be, for small ones keep the units less busy. */
            const long blocks = (until - from + 5) / 6;
            for (long block = 0; block < blocks; block++, count++) {
                const long top = from + (until - from) * block / blocks;
                const long bottom = from + (until - from) * (block + 1) / blocks;
                for (long i = top; i < bottom; i++) {
                    own.rows[i - top] = p->x + i * p->x_stride + start;
                    if (further != 0) then.rows[i - top] = further->x + (i - further->first) * further->x_stride;
                }
                const bf16 *ahead = has_time ? coming(left, right, panel_size, count) : own.left;
                multiply_some(
                    (int)(bottom - top), is_wide, &own, is_last && further != 0 ? &then : 0, start > 0,
                    tile + (top - first), ahead
                );
            }
        }
    }
    for (long i = first; i < end; i++) finish_row(p, is_wide, number, i, tile[i - first]);
}

/* As `panel`, for any number of rows. */
INLINE void panel_of_all(const Product *p, const int is_wide, long number, long first, long end) {
    for (long from = first; from < end; from += MOST_ROWS)
        panel(p, is_wide, number, from, from + MOST_ROWS < end ? from + MOST_ROWS : end);
}

void product_part(const Product *p) {
    const long threads = omp_get_num_threads(), panels = (p->outputs + PANEL - 1) / PANEL;
    /* Few panels for many threads: rows are split too. */
    const long parts = panels >= 4 * threads || p->rows < 12 ? 1 : (4 * threads + panels - 1) / panels;
    const long row_parts = parts * 6 > p->rows ? (p->rows + 5) / 6 : parts;
    long unit, end;
    share(panels * row_parts, &unit, &end);
    while (unit < end) {
        const long part = unit / panels, number = unit % panels;
        const long first = p->rows * part / row_parts, last = p->rows * (part + 1) / row_parts;
        if (p->kind == GATED) {
            panel_of_all(p, 1, number, first, last);
            unit += 1;
        } else if (unit + 1 < end && number + 1 < panels) {
            panel_of_all(p, 1, number, first, last);
            unit += 2;
        } else {
            panel_of_all(p, 0, number, first, last);
            unit += 1;
        }
    }
}

/* Compute a product with `threads` threads. */
void product(const Product *p, long threads) {
    if (p->rows * p->depth * p->outputs < 1 << 18) threads = 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
    product_part(p);
}
