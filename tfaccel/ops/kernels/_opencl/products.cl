// Products of matrices and convolutions, of which T is the numbers' type; sums are in float.
//
// A result's row is a pixel. Under tap (i, j) of the window it sees one pixel of the source, or
// none. `Call` says which, so that the input's gradient is the same code as the product; a matrix
// is an image of one row.

typedef struct {
    int height, width;                // of the image whose pixels are counted by rows
    int source_height, source_width;  // of the image that they see
    int taps_high, taps_wide;
    int times_high, times_wide;       // the source's pixel: (pixel * times + tap * step + offset)
    int step_high, step_wide;         // / divisor, if that leaves no rest
    int offset_high, offset_wide;
    int divisor_high, divisor_wide;
    int rows, inner, columns;         // inner: what is summed over for each tap, in one group
    int pixel_a, group_a;             // how far pixels, and groups of channels, are apart
    int tap_b, group_b, row_b;
    int group_out, row_out;
    int part_rows, parts;             // weights: rows of one part of the sum, how many parts
    int multiplier;                   // depthwise: outputs of each channel
} Call;

// Read in place of vload16, which PoCL calls as a function: all registers are saved in each loop.
typedef float16 __attribute__((aligned(4))) Unaligned;

#ifdef HALF
typedef half T;
#define LOAD(p, i) vload_half(i, p)
#define LOAD16(p) vload_half16(0, p)
#define STORE(value, p, i) vstore_half(value, i, p)
#else
typedef float T;
#define LOAD(p, i) (p)[i]
#define LOAD16(p) *(const global Unaligned*)(p)
#define STORE(value, p, i) (p)[i] = (value)
#endif
typedef const global T* restrict Input;
typedef global T* restrict Output;

typedef struct {
    int image, y, x;
} Pixel;

Pixel pixel_of(const Call* c, int row) {
    if (c->width == c->rows) return (Pixel){0, 0, row};  // a matrix
    const int area = c->height * c->width, rest = row % area;
    return (Pixel){row / area, rest / c->width, rest % c->width};
}

// The source's pixel that one sees under a tap; -1: none.
long seen(const Call* c, Pixel at, int i, int j) {
    int y = at.y * c->times_high + i * c->step_high + c->offset_high;
    int x = at.x * c->times_wide + j * c->step_wide + c->offset_wide;
    if (y < 0 || x < 0) return -1;
    if (c->divisor_high > 1) {
        if (y % c->divisor_high) return -1;
        y /= c->divisor_high;
    }
    if (c->divisor_wide > 1) {
        if (x % c->divisor_wide) return -1;
        x /= c->divisor_wide;
    }
    if (y >= c->source_height || x >= c->source_width) return -1;
    return ((long)at.image * c->source_height + y) * c->source_width + x;
}

float16 some(const global T* p, int count) {
    if (count >= 16) return LOAD16(p);
    float t[16];
    for (int i = 0; i < 16; i++) t[i] = i < count ? LOAD(p, i) : 0.0f;
    return *(const Unaligned*)t;
}

void put(float16 value, global T* p, int count) {
    float t[16];
    vstore16(value, 0, t);
    for (int i = 0; i < min(count, 16); i++) STORE(t[i], p, i);
}

// Without local memory, for CPUs: an item has HIGH rows of 16 * WIDE columns in registers. Arrays
// would be in memory, so that what is done for each row is written out by macros.

#define COLUMNS (16 * WIDE)
#define ROWS_4(F) F(0) F(1) F(2) F(3)
#define ROWS_6(F) ROWS_4(F) F(4) F(5)
#define ROWS_8(F) ROWS_6(F) F(6) F(7)
#define ROWS_12(F) ROWS_8(F) F(8) F(9) F(10) F(11)
#define NAMED(high) ROWS_##high
#define ROWS(high) NAMED(high)
#define EACH_ROW ROWS(HIGH)
#if WIDE == 2
#define BOTH(first, second) first, second
#else
#define BOTH(first, second) first
#endif

#define SUMS(r) float16 BOTH(low##r = 0.0f, high##r = 0.0f);
#define ADD(r) (BOTH(low##r += value##r * first, high##r += value##r * second));

#define PIXEL(r) const Pixel at##r = pixel_of(&c, min(row + r, c.rows - 1));
#define SEEN(r) \
    const long p##r = seen(&c, at##r, tap / c.taps_wide, tap % c.taps_wide); \
    const global T* from##r = \
        p##r < 0 ? zeros : a + p##r * c.pixel_a + (long)group * c.group_a;
#define VALUE(r) const float value##r = LOAD(from##r, k);
#define PUT(r) \
    if (row + r < c.rows) { \
        global T* to = out + (long)(row + r) * c.row_out + (long)group * c.group_out; \
        BOTH(put(low##r, to + panel * COLUMNS, left), \
             put(high##r, to + panel * COLUMNS + 16, left - 16)); \
    }

// `b` has the columns of an item side by side, and zeros for those that are not there; `zeros` is
// a pixel that is not there.
kernel void direct(Input a, Input b, Input zeros, Output out, const Call c) {
    const int row = get_global_id(0) * HIGH, panel = get_global_id(1), group = get_global_id(2);
    const int taps = c.taps_high * c.taps_wide, left = c.columns - panel * COLUMNS;
    const global T* with = b + ((long)group * get_global_size(1) + panel) * taps * c.tap_b;
    EACH_ROW(SUMS)
    EACH_ROW(PIXEL)
    for (int tap = 0; tap < taps; tap++) {
        EACH_ROW(SEEN)
        for (int k = 0; k < c.inner; k++, with += COLUMNS) {
            const float16 BOTH(first = LOAD16(with), second = LOAD16(with + 16));
            EACH_ROW(VALUE)
            EACH_ROW(ADD)
        }
    }
    EACH_ROW(PUT)
}

Pixel next(const Call* c, Pixel at) {
    if (++at.x == c->width) {
        at.x = 0;
        if (++at.y == c->height) {
            at.y = 0;
            at.image++;
        }
    }
    return at;
}

#define CHANNEL(r) const int channel##r = min(channel + r, c.inner - 1);
#define CHANNEL_VALUE(r) const float value##r = LOAD(from, channel##r);
#define PUT_CHANNEL(r) \
    if (channel + r < c.inner) { \
        global T* to = there + (long)r * c.row_out; \
        BOTH(put(low##r, to, left), put(high##r, to + 16, left - 16)); \
    }

// The weights' gradient: a row is a tap and a channel, and pixels are summed over.
kernel void direct_weights(Input a, Input b, Output out, const Call c) {
    const int tiles = (c.inner + HIGH - 1) / HIGH;
    const int tap = get_global_id(0) / tiles, channel = get_global_id(0) % tiles * HIGH;
    const int column = get_global_id(1) * COLUMNS, left = c.columns - column;
    const int group = get_global_id(2) / c.parts, part = get_global_id(2) % c.parts;
    const int begin = part * c.part_rows, end = min(begin + c.part_rows, c.rows);
    EACH_ROW(SUMS)
    EACH_ROW(CHANNEL)
    Pixel at = pixel_of(&c, begin);
    for (int row = begin; row < end; row++, at = next(&c, at)) {
        const long p = seen(&c, at, tap / c.taps_wide, tap % c.taps_wide);
        if (p < 0) continue;
        const global T* from = a + p * c.pixel_a + (long)group * c.group_a;
        const global T* with = b + (long)row * c.row_b + (long)group * c.group_b + column;
        const float16 BOTH(first = some(with, left), second = some(with + 16, left - 16));
        EACH_ROW(CHANNEL_VALUE)
        EACH_ROW(ADD)
    }
    const long rows = (long)c.taps_high * c.taps_wide * c.inner;
    const long first_row = part * rows + (long)tap * c.inner + channel;
    global T* there = out + first_row * c.row_out + (long)group * c.group_out + column;
    EACH_ROW(PUT_CHANNEL)
}

// In local memory, for GPUs: GROUP x GROUP items have 4 x 4 results each, and read 16 terms at a
// time.
// Source: https://cnugteren.github.io/tutorial/pages/page1.html

#define SIDE (4 * GROUP)
#define DEEP 16
#define ITEMS (GROUP * GROUP)
#define READS (SIDE * DEEP / ITEMS)

void tiled_sum(
    Input a, Input b, Output out, const Call* c, bool weights,
    local float (*left)[SIDE], local float (*right)[SIDE]
) {
    const int x = get_local_id(0), y = get_local_id(1), item = y * GROUP + x;
    const int column = get_group_id(0) * SIDE, row = get_group_id(1) * SIDE;
    const int group = get_group_id(2) / c->parts, part = get_group_id(2) % c->parts;
    const int taps = c->taps_high * c->taps_wide;
    const int rows = weights ? taps * c->inner : c->rows;
    const int begin = weights ? part * c->part_rows : 0;
    const int end = weights ? min(begin + c->part_rows, c->rows) : taps * c->inner;
    // Neighbouring items read neighbouring channels: an item reads one column of a few rows of the
    // product, of weights a few pixels of one row.
    const int own = weights ? row + item % SIDE : 0, tap_of_own = own / c->inner;
    const int channel_of_own = own % c->inner;
    Pixel at[READS];
    for (int i = 0; i < READS; i++)
        at[i] = pixel_of(c, weights ? 0 : min(row + (item + ITEMS * i) / DEEP, rows - 1));
    float4 sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int from = begin; from < end; from += DEEP) {
        const int term = from + item % DEEP, tap_of_term = taps > 1 ? term / c->inner : 0;
        const int tap = weights ? tap_of_own : tap_of_term;
        const int channel = weights ? channel_of_own : term - tap_of_term * c->inner;
        const int i = tap / c->taps_wide, j = tap % c->taps_wide;
        for (int n = 0; n < READS; n++) {
            const int place = item + ITEMS * n;
            const int r = weights ? place % SIDE : place / DEEP;
            const int k = weights ? place / SIDE : place % DEEP;
            float value = 0.0f;
            if (row + r < rows && from + k < end) {
                const long p = seen(c, weights ? pixel_of(c, from + k) : at[n], i, j);
                if (p >= 0) value = LOAD(a, p * c->pixel_a + (long)group * c->group_a + channel);
            }
            left[k][r] = value;
            const int m = place % SIDE, q = place / SIDE;
            const int tap_b = weights || taps == 1 ? 0 : (from + q) / c->inner;
            const int in = from + q - tap_b * c->inner;
            const long from_b = (long)tap_b * c->tap_b + (long)group * c->group_b;
            const bool has = column + m < c->columns && from + q < end;
            right[q][m] = has ? LOAD(b, from_b + (long)in * c->row_b + column + m) : 0.0f;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        for (int k = 0; k < DEEP; k++) {
            const float4 u = ((const local float4*)left[k])[y];
            const float4 v = ((const local float4*)right[k])[x];
            sum[0] += u.x * v;
            sum[1] += u.y * v;
            sum[2] += u.z * v;
            sum[3] += u.w * v;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    for (int i = 0; i < 4; i++) {
        float t[4];
        vstore4(sum[i], 0, t);
        const int r = row + y * 4 + i;
        for (int j = 0; j < 4; j++) {
            const int m = column + x * 4 + j;
            if (r >= rows || m >= c->columns) continue;
            const long to = ((long)(weights ? part : 0) * rows + r) * c->row_out;
            STORE(t[j], out, to + (long)group * c->group_out + m);
        }
    }
}

kernel __attribute__((reqd_work_group_size(GROUP, GROUP, 1)))
void tiled(Input a, Input b, Output out, const Call c) {
    local float left[DEEP][SIDE] __attribute__((aligned(16)));
    local float right[DEEP][SIDE] __attribute__((aligned(16)));
    tiled_sum(a, b, out, &c, false, left, right);
}

kernel __attribute__((reqd_work_group_size(GROUP, GROUP, 1)))
void tiled_weights(Input a, Input b, Output out, const Call c) {
    local float left[DEEP][SIDE] __attribute__((aligned(16)));
    local float right[DEEP][SIDE] __attribute__((aligned(16)));
    tiled_sum(a, b, out, &c, true, left, right);
}

// Depthwise: an item has 16 channels of one pixel. `columns` are those of the result.

// Of 16 channels of the result the values that they have in a source with `count` for each,
// or, if the result has `shared` for each of the source's, with one for several.
float16 apart(const global T* p, int channel, int left, int count, int shared, int which) {
    if (count == 1 && shared == 1) return some(p + channel, left);
    float t[16];
    for (int i = 0; i < 16; i++)
        t[i] = i < left ? LOAD(p, (channel + i) / shared * count + which) : 0.0f;
    return *(const Unaligned*)t;
}

kernel void depthwise(Input a, Input b, Output out, const Call c) {
    const int channel = get_global_id(0) * 16, left = c.columns - channel;
    const int row = get_global_id(1);
    const Pixel at = pixel_of(&c, row);
    // Forward a channel of the source has several of the result; of the input's gradient each
    // has several of the source.
    const int count = c.inner, shared = c.multiplier / c.inner;
    float16 sum = 0.0f;
    for (int i = 0; i < c.taps_high; i++) {
        for (int j = 0; j < c.taps_wide; j++) {
            const long p = seen(&c, at, i, j);
            if (p < 0) continue;
            const global T* with = b + (long)(i * c.taps_wide + j) * c.tap_b;
            for (int k = 0; k < count; k++)
                sum += apart(a + p * c.pixel_a, channel, left, count, shared, k)
                    * apart(with, channel, left, count, 1, k);
        }
    }
    put(sum, out + (long)row * c.row_out + channel, left);
}

kernel void depthwise_weights(Input a, Input b, Output out, const Call c) {
    const int channel = get_global_id(0) * 16, left = c.columns - channel;
    const int tap = get_global_id(1), part = get_global_id(2);
    const int begin = part * c.part_rows, end = min(begin + c.part_rows, c.rows);
    float16 sum = 0.0f;
    Pixel at = pixel_of(&c, begin);
    for (int row = begin; row < end; row++, at = next(&c, at)) {
        const long p = seen(&c, at, tap / c.taps_wide, tap % c.taps_wide);
        if (p < 0) continue;
        sum += apart(a + p * c.pixel_a, channel, left, 1, c.multiplier, 0)
            * some(b + (long)row * c.row_b + channel, left);
    }
    const long to = (long)part * c.taps_high * c.taps_wide + tap;
    put(sum, out + to * c.row_out + channel, left);
}
