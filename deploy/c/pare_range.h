/* The range-coded half of the format: a binary arithmetic decoder, and the models that predict its bits.
 * Part of pare_decode.c, which includes it. Products of signed numbers are shifted right towards minus infinity. */
typedef struct { uint16_t *chance; uint8_t *count; int64_t weight[6]; int inputs; } Mixer;
static uint32_t low, high = 0xFFFFFFFF, value, last;  /* the decoder's bounds; the text's last four bytes */
static uint64_t allowance = RANGE_LIMIT;              /* decisions that are left */
static uint16_t there[1024];                          /* the last two bytes of each slot */
static int squash[4096], stretch[4096];
static Mixer text, present, sign, magnitude;

static int next_bit(uint32_t chance) {
    if (priming) { range.at++; return reference[(range.at - 1) >> 3] >> (7 - ((range.at - 1) & 7)) & 1; }
    uint32_t middle = low + (uint32_t)(((uint64_t)(high - low) * chance) >> 16);
    int bit = value <= middle;
    if (bit) high = middle; else low = middle + 1;
    while ((low ^ high) < 1u << 24) {
        value = value << 8 | (range.at < range.size ? range.data[range.at] : 0);
        range.at++;
        low <<= 8;
        high = high << 8 | 255;
    }
    return bit;
}

static void tables(void) {
    static const int half[] = {22, 36, 60, 98, 162, 267, 439, 720, 1179, 1921, 3108, 4971, 7812, 11955, 17625, 24743};
    int points[33] = {0}, at = 0;
    for (int i = 0; i < 16; i++) points[i] = half[i], points[32 - i] = 65536 - half[i];
    points[16] = 32768;
    for (int i = 0; i < 4096; i++)
        squash[i] = points[i >> 7] + ((points[(i >> 7) + 1] - points[i >> 7]) * (i & 127) >> 7);
    for (int i = 0; i < 4096; i++) {
        while (at < 4095 && squash[at] < 16 * i) at++;
        stretch[i] = at - 2048 < -2047 ? -2047 : at - 2048;
    }
}

static Mixer mixer(int contexts, int inputs, int64_t weight) {
    Mixer m = {room(2 * contexts), room(contexts), {0}, inputs};
    for (int i = 0; i < contexts; i++) m.chance[i] = 32768;
    for (int i = 0; i < inputs; i++) m.weight[i] = weight;
    return m;
}

static int predicted(Mixer *m, const uint32_t *contexts) {
    int64_t mixed = 0, in[6];
    for (int i = 0; i < m->inputs; i++) mixed += m->weight[i] * (in[i] = stretch[m->chance[contexts[i]] >> 4]);
    mixed >>= 16; /* towards minus infinity, here and below */
    int chance = squash[2048 + (mixed > 2047 ? 2047 : mixed < -2047 ? -2047 : mixed)];
    int bit = next_bit(chance);
    for (int i = 0; i < m->inputs; i++) {
        uint32_t c = contexts[i], rate = 65536 * 2 / (2 * m->count[c] + 3);
        m->weight[i] += (in[i] * ((bit << 16) - chance) + 16384) >> 15;
        if (bit) m->chance[c] += (65535 - m->chance[c]) * rate >> 16;
        else m->chance[c] -= m->chance[c] * rate >> 16;
        if (m->count[c] < 255) m->count[c]++;
    }
    return bit;
}

static void allow(uint64_t decisions) {
    if (decisions > allowance) damaged("too much is range-coded");
    allowance -= decisions;
}

static uint8_t text_byte(uint32_t slot) {
    if (!priming) allow(64);
    uint32_t seen[6] = {slot, slot << 8 | (last & 255), last & 0xFFFF, slot << 24 | (last & 0xFFFFFF), last,
                        slot << 16 | there[slot]}, contexts[6], node = 1;
    while (node < 256) {
        for (uint32_t i = 0; i < 6; i++)
            contexts[i] = ((i + 1) * 0x3C6EF372u + seen[i] * 0x2545F491u + node * 0x9E3779B1u) >> 16 | i << 16;
        node = node << 1 | (uint32_t)predicted(&text, contexts);
    }
    last = last << 8 | (node & 255);
    there[slot] = (uint16_t)(there[slot] << 8 | (node & 255));
    return (uint8_t)node;
}

static int bits_in(uint32_t n) { int bits = 0; while (n) bits++, n >>= 1; return bits; }
static int sign_of(int n) { return n > 0 ? 1 : n < 0 ? 2 : 0; }
static uint32_t level(int count, int seen) {
    uint32_t i = (uint32_t)(64 * (5 * (int64_t)count + 2) / (5 * ((int64_t)seen + 2)));
    return i < 5 ? i : 2 * (uint32_t)bits_in(i) - 2 + (i >> (bits_in(i) - 2) & 1);
}

static void weights(int8_t *found, uint64_t height, uint64_t breadth, uint64_t apart, int bits) {
    if (priming) return;
    allow(height * breadth * ((uint64_t)bits + 2));
    int rows = (int)height, columns = (int)breadth, width = (int)apart, pad = width + 1, all = columns + 2 * pad;
    int *row = room(4ull * all), *above = room(4ull * all), *totals = room(12ull * all), *sums = totals + all,
        *signs = sums + all;
    for (int r = 0; r < rows; r++) {
        int total = 0, sum = 0, *swap = above;
        for (int c = pad; c < pad + columns; c++) {
            int left = row[c - 1], up = above[c], far = row[c - width];
            int around = totals[c - 1] + totals[c + 1] + totals[c - width] + totals[c + width];
            uint32_t here = level(total, c - pad), down = level(totals[c], r), near = level(around, 4 * r + 4);
            uint32_t close = (left != 0) | (up != 0) << 1 | (above[c - 1] != 0) << 2 | (above[c + 1] != 0) << 3;
            uint32_t distant = (far != 0) | (row[c - pad] != 0) << 1 | (row[c - width + 1] != 0) << 2;
            distant |= (above[c - width] != 0) << 3 | (left != 0) << 4;
            uint32_t places[] = {here << 4 | down, 256 | near << 4 | down, 512 | close,
                                 576 | distant, 640 | here};
            if (!predicted(&present, places)) continue;
            uint32_t nears[] = {sign_of(left) * 3 + sign_of(up), 9 + sign_of(far) * 3 + sign_of(left),
                                18 + sign_of(signs[c]), 21};
            int negative = predicted(&sign, nears), l = bits_in(abs(left)), u = bits_in(abs(up));
            uint32_t node = 1, sizes = (uint32_t)((l > 7 ? 7 : l) << 3 | (u > 7 ? 7 : u));
            here = bits_in(2 * sum / (total ? total : 1));
            down = bits_in(2 * sums[c] / (totals[c] ? totals[c] : 1));
            for (int i = 0; i < bits; i++) {
                uint32_t contexts[] = {node, 128 + (node << 6 | sizes), 8320 + (node << 4 | here),
                                       10368 + (node << 4 | down)};
                node = node << 1 | (uint32_t)predicted(&magnitude, contexts);
            }
            int size_of = (int)node - (1 << bits) + 1;
            row[c] = negative ? -size_of : size_of;
            total++, totals[c]++, sum += size_of, sums[c] += size_of, signs[c] += row[c];
        }
        for (int c = 0; c < columns; c++) found[(int64_t)r * columns + c] = (int8_t)row[pad + c];
        above = row;
        row = swap;
        memset(row, 0, 4ull * all);
    }
    free(row), free(above), free(totals);
}

static void range_start(int skeleton) {
    tables();
    text = mixer(6 << 16, 6, 20000);
    present = mixer(656, 5, 16000);
    sign = mixer(22, 4, 16000);
    magnitude = mixer(12416, 4, 16000);
    if (skeleton) { /* the text's model reads the reference, and what that unpacks to is forgotten */
        Part stream = range;
        uint64_t whole = size;
        range = (Part){reference, 0, 0};
        out = room(size = 1 << 20);
        ranged_skeleton = priming = 1;
        message(MODEL, 0);
        ranged_skeleton = priming = 0;
        free(out);
        range = stream, size = whole, used = 0;
    }
    for (int i = 0; i < 4; i++) value = value << 8 | (range.at < range.size ? range.data[range.at] : 0), range.at++;
}
