/* The choice of a greedy answer's next token. */
#include "bf16.h"

/* Numbers of which the greatest is remembered by where they begin, so that a row is read once. */
enum { STRETCH = 1024 };

/* The place of the first of a row's greatest numbers; -1 if it isn't finite, or if one of the row isn't a number. */
static int64_t place_of_greatest(const float *row, long size) {
    const __m512 least = _mm512_set1_ps(-__builtin_inff());
    float greatest = -__builtin_inff();
    long found = 0;
    __mmask16 is_broken = 0;
    for (long begin = 0; begin < size; begin += STRETCH) {
        const long end = begin + STRETCH < size ? begin + STRETCH : size;
        __m512 most = least;
        for (long j = begin; j < end; j += LANES) {
            const __mmask16 lanes = end - j >= LANES ? 0xffff : (__mmask16)((1u << (end - j)) - 1);
            const __m512 part = _mm512_mask_loadu_ps(least, lanes, row + j);
            is_broken |= _mm512_cmp_ps_mask(part, part, _CMP_UNORD_Q);
            most = _mm512_max_ps(most, part);
        }
        const float own = _mm512_reduce_max_ps(most);
        if (own > greatest) {
            greatest = own;
            found = begin;
        }
    }
    if (is_broken || greatest == __builtin_inff() || greatest == -__builtin_inff()) return -1;
    while (row[found] != greatest) found++;
    return found;
}

/* rows: (count, size) with a distance of `stride`; places: (count,). */
void likeliest(const float *rows, long count, long stride, long size, int64_t *places, long threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && count > 1)
    for (long i = 0; i < count; i++) places[i] = place_of_greatest(rows + i * stride, size);
}
