/* Sums of outer products over rows: the gradients of an adapter's narrow matrices. */
#include "bf16.h"

/* Numbers of a narrow row whose sums are held at once, each for one panel of a wide row's numbers; rows that a thread's
 * cache holds while it goes over the panels. */
enum { NARROW = 8, ROWS_AT_ONCE = 64, AHEAD = 2 * PANEL };

/* Two rows' numbers side by side, as `_mm512_dpbf16_ps` multiplies them: lane i holds columns i of both. */
INLINE void pair_up(__m512i first, __m512i second, __m512bh *left, __m512bh *right) {
    const __m512i order = _mm512_set_epi16(
        47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0
    );
    *left = (__m512bh)_mm512_permutex2var_epi16(first, order, second);
    *right = (__m512bh)_mm512_permutex2var_epi16(first, _mm512_add_epi16(order, _mm512_set1_epi16(16)), second);
}

/*
 * Add to `sums` (NARROW rows of `sums_stride`, from one panel of columns on) the outer products of `count` rows.
 *
 * narrow: pairs of rows' numbers, [pair][width]; wide: the rows' panel, of which `lanes` are there.
 */
INLINE void add_outer(
    const int32_t *narrow, long width, const bf16 *wide, long wide_stride, long count, __mmask32 lanes, float *sums,
    long sums_stride
) {
    __m512 held[NARROW][2];
#pragma GCC unroll 8
    for (int i = 0; i < NARROW; i++) {
        held[i][0] = _mm512_loadu_ps(sums + i * sums_stride);
        held[i][1] = _mm512_loadu_ps(sums + i * sums_stride + LANES);
    }
    for (long row = 0; row < count; row += 2, narrow += width) {
        const __m512i first = _mm512_maskz_loadu_epi16(lanes, wide + row * wide_stride);
        const __m512i second =
            row + 1 < count ? _mm512_maskz_loadu_epi16(lanes, wide + (row + 1) * wide_stride) : _mm512_setzero_si512();
        /* Rows lie far apart, so the processor doesn't foresee that the panels beside this one come next. */
        _mm_prefetch((const char *)(wide + row * wide_stride + AHEAD), _MM_HINT_T0);
        _mm_prefetch((const char *)(wide + (row + 1) * wide_stride + AHEAD), _MM_HINT_T0);
        __m512bh left, right;
        pair_up(first, second, &left, &right);
#pragma GCC unroll 8
        for (int i = 0; i < NARROW; i++) {
            const __m512bh factor = (__m512bh)_mm512_set1_epi32(narrow[i]);
            held[i][0] = _mm512_dpbf16_ps(held[i][0], factor, left);
            held[i][1] = _mm512_dpbf16_ps(held[i][1], factor, right);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < NARROW; i++) {
        _mm512_storeu_ps(sums + i * sums_stride, held[i][0]);
        _mm512_storeu_ps(sums + i * sums_stride + LANES, held[i][1]);
    }
}

/*
 * sums[i][j] = scale * sum over rows of narrow[row][i] * wide[row][j], in float32.
 *
 * narrow: (rows, width); wide: (rows, columns), both with any distance between rows; sums: (width, columns), both rounded
 * up, to NARROW and PANEL; pairs: room for half as many rows (rounded up) of pairs, each as wide as `sums` is high. Both
 * hold zeros. Threads share the columns, so a sum is always made in the same order.
 */
void sum_outer(
    const bf16 *narrow, long narrow_stride, long width, const bf16 *wide, long wide_stride, long columns, long rows,
    float scale, int32_t *pairs, float *sums, long threads
) {
    const long padded = (width + NARROW - 1) / NARROW * NARROW, panels = (columns + PANEL - 1) / PANEL;
    const long sums_stride = panels * PANEL;
    const __m512 factor = _mm512_set1_ps(scale);
    for (long row = 0; row < rows; row++)
        for (long i = 0; i < width; i++)
            ((bf16 *)(pairs + row / 2 * padded + i))[row % 2] = narrow[row * narrow_stride + i];
    if (rows * width * columns < 1 << 18) threads = 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        long begin, end;
        share(panels, &begin, &end);
        for (long row = 0; row < rows; row += ROWS_AT_ONCE) {
            const long count = rows - row < ROWS_AT_ONCE ? rows - row : ROWS_AT_ONCE;
            for (long number = begin; number < end; number++) {
                const long column = number * PANEL, left = columns - column;
                const __mmask32 lanes = left >= PANEL ? 0xffffffff : ((__mmask32)1 << left) - 1;
                for (long i = 0; i < padded; i += NARROW)
                    add_outer(
                        pairs + row / 2 * padded + i, padded, wide + row * wide_stride + column, wide_stride, count, lanes,
                        sums + i * sums_stride + column, sums_stride
                    );
            }
        }
        for (long i = 0; i < width; i++)
            for (long j = begin * PANEL; j < end * PANEL; j += LANES) {
                float *to = sums + i * sums_stride + j;
                _mm512_storeu_ps(to, _mm512_mul_ps(factor, _mm512_loadu_ps(to)));
            }
    }
}
