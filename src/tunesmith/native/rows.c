/* What is done to single vectors between products: normalisation, rotation by position, keeping keys and values. */
#include "parts.h"

void norm_part(const Norm *n) {
    long first, end;
    share(n->outer * n->inner, &first, &end);
    for (long i = first; i < end; i++) {
        const bf16 *from = n->x + (i / n->inner) * n->x_stride + (i % n->inner) * n->size;
        bf16 *to = n->out + (i / n->inner) * n->out_stride + (i % n->inner) * n->size;
        __m512 squares = _mm512_setzero_ps();
        for (long j = 0; j < n->size; j += LANES) {
            const __m512 part = load_bf16(from + j);
            squares = _mm512_fmadd_ps(part, part, squares);
        }
        const float mean = _mm512_reduce_add_ps(squares) / (float)n->size;
        const float inverse = 1.0f / __builtin_sqrtf(mean + n->epsilon);
        if (n->inverses != 0) n->inverses[i] = inverse;
        const __m512 scale = _mm512_set1_ps(inverse);
        for (long j = 0; j < n->size; j += LANES) {
            const __m512 part = _mm512_mul_ps(_mm512_mul_ps(load_bf16(from + j), scale), _mm512_loadu_ps(n->factors + j));
            store_bf16(to + j, part);
        }
    }
}

/* Normalise vectors with `threads` threads. */
void norm(const Norm *n, long threads) {
    if (n->outer * n->inner * n->size < 1 << 15) threads = 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
    norm_part(n);
}

/*
 * The gradient of `norm` by x for rows without gaps: (s - n mean(n s)) / rms(x), where n is the normalised row and s the
 * gradient of the result times the factors.
 */
void norm_backward(
    const bf16 *x, const bf16 *gradients, const float *inverses, long rows, long size, const float *factors, bf16 *out,
    long threads
) {
    if (rows * size < 1 << 15) threads = 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        long first, end;
        share(rows, &first, &end);
        for (long row = first; row < end; row++) {
            const bf16 *from = x + row * size, *gradient = gradients + row * size;
            const __m512 inverse = _mm512_set1_ps(inverses[row]);
            __m512 along = _mm512_setzero_ps();
            for (long j = 0; j < size; j += LANES) {
                const __m512 slope = _mm512_mul_ps(load_bf16(gradient + j), _mm512_loadu_ps(factors + j));
                along = _mm512_fmadd_ps(_mm512_mul_ps(load_bf16(from + j), inverse), slope, along);
            }
            const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(along) / (float)size);
            for (long j = 0; j < size; j += LANES) {
                const __m512 slope = _mm512_mul_ps(load_bf16(gradient + j), _mm512_loadu_ps(factors + j));
                const __m512 normal = _mm512_mul_ps(load_bf16(from + j), inverse);
                store_bf16(out + row * size + j, _mm512_mul_ps(_mm512_fnmadd_ps(normal, mean, slope), inverse));
            }
        }
    }
}

/* x, or -x. */
INLINE __m512 signed_by(int is_negative, __m512 x) {
    return is_negative ? _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(x), _mm512_set1_epi32(1u << 31))) : x;
}

/* Turn one head: its low half by `low_sines`, which may count as negative, its high half by `high_sines`, likewise. */
INLINE void turn(
    const bf16 *x, bf16 *to, long half, const bf16 *cosines, const bf16 *low_sines, const int low_is_negative,
    const bf16 *high_sines, const int high_is_negative
) {
    for (long j = 0; j < half; j += LANES) {
        const __m512 low = load_bf16(x + j), high = load_bf16(x + half + j);
        const __m512 low_sine = signed_by(low_is_negative, load_bf16(low_sines + j));
        const __m512 high_sine = signed_by(high_is_negative, load_bf16(high_sines + j));
        const __m512 low_part = _mm512_mul_ps(low, load_bf16(cosines + j));
        const __m512 high_part = _mm512_mul_ps(high, load_bf16(cosines + half + j));
        store_bf16(to + j, _mm512_fmadd_ps(high, low_sine, low_part));
        store_bf16(to + half + j, _mm512_fmadd_ps(low, high_sine, high_part));
    }
}

/*
 * Turn rows of heads by their positions, halves as pairs (Su et al. 2021, arXiv:2104.09864); if it `goes_back`, the
 * transposed map, which takes gradients back.
 *
 * x, out: (rows, heads, size); cosines, sines: (rows, size).
 */
void rotate(
    const bf16 *x, long rows, long heads, long size, const bf16 *cosines, const bf16 *sines, long goes_back, bf16 *out,
    long threads
) {
    const long half = size / 2;
    if (rows * heads * size < 1 << 15) threads = 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        long first, end;
        share(rows, &first, &end);
        for (long row = first; row < end; row++) {
            const bf16 *cosine = cosines + row * size, *sine = sines + row * size;
            for (long at = row * heads * size; at < (row + 1) * heads * size; at += size)
                if (goes_back)
                    turn(x + at, out + at, half, cosine, sine + half, 0, sine, 1);
                else
                    turn(x + at, out + at, half, cosine, sine, 1, sine + half, 0);
        }
    }
}

void turn_and_keep_part(const Turning *t) {
    const long half = t->size / 2, all = t->heads + 2 * t->key_heads;
    long first, end;
    share(t->rows, &first, &end);
    for (long row = first; row < end; row++) {
        bf16 *x = t->together + row * all * t->size;
        const bf16 *cosine = t->cosines + row * t->size, *sine = t->sines + row * t->size;
        for (long head = 0; head < t->heads + t->key_heads; head++, x += t->size)
            turn(x, x, half, cosine, sine, 0, sine + half, 0);
        const long page = t->slots[row] / PAGE, place = t->slots[row] % PAGE;
        for (long head = 0; head < t->key_heads; head++) {
            const long at = ((page * t->key_heads + head) * PAGE + place) * t->size;
            __builtin_memcpy(t->keys + at, x + (head - t->key_heads) * t->size, t->size * sizeof(bf16));
            __builtin_memcpy(t->values + at, x + head * t->size, t->size * sizeof(bf16));
        }
    }
}

/* Turn and keep with `threads` threads. */
void turn_and_keep(const Turning *t, long threads) {
    if (t->rows * (t->heads + 2 * t->key_heads) * t->size < 1 << 15) threads = 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
    turn_and_keep_part(t);
}

/* silu(gate) * up for `count` numbers, as a gated product gives it. */
void gate(const bf16 *gates, const bf16 *ups, long count, bf16 *out, long threads) {
    const long parts = (count + LANES - 1) / LANES;
    if (count < 1 << 15) threads = 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        long first, end;
        share(parts, &first, &end);
        for (long i = first * LANES; i < end * LANES; i += LANES) {
            const __mmask16 lanes = count - i >= LANES ? 0xffff : (__mmask16)((1u << (count - i)) - 1);
            const __m512 own = widen(_mm256_maskz_loadu_epi16(lanes, gates + i));
            const __m512 other = widen(_mm256_maskz_loadu_epi16(lanes, ups + i));
            _mm256_mask_storeu_epi16(out + i, lanes, narrow(gated(own, other)));
        }
    }
}

/*
 * The gradients of `gate`: of the gate itself, and, in place of the result's, of what it is multiplied with; the result
 * is made again.
 */
void gate_backward(
    const bf16 *gates, const bf16 *ups, long count, bf16 *gradients, bf16 *gate_gradients, bf16 *out, long threads
) {
    const long parts = (count + LANES - 1) / LANES;
    const __m512 one = _mm512_set1_ps(1.0f);
    if (count < 1 << 15) threads = 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        long first, end;
        share(parts, &first, &end);
        for (long i = first * LANES; i < end * LANES; i += LANES) {
            const __mmask16 lanes = count - i >= LANES ? 0xffff : (__mmask16)((1u << (count - i)) - 1);
            const __m512 gate = widen(_mm256_maskz_loadu_epi16(lanes, gates + i));
            const __m512 up = widen(_mm256_maskz_loadu_epi16(lanes, ups + i));
            const __m512 gradient = widen(_mm256_maskz_loadu_epi16(lanes, gradients + i));
            const __m512 portion = sigmoid(gate), active = rounded(_mm512_mul_ps(gate, portion));
            /* d silu(g) = sigmoid(g) (1 + g (1 - sigmoid(g))) */
            const __m512 slope = _mm512_mul_ps(portion, _mm512_fmadd_ps(gate, _mm512_sub_ps(one, portion), one));
            _mm256_mask_storeu_epi16(out + i, lanes, narrow(_mm512_mul_ps(active, up)));
            _mm256_mask_storeu_epi16(
                gate_gradients + i, lanes, narrow(_mm512_mul_ps(_mm512_mul_ps(gradient, up), slope))
            );
            _mm256_mask_storeu_epi16(gradients + i, lanes, narrow(_mm512_mul_ps(gradient, active)));
        }
    }
}
