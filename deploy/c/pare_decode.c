/* Unpacks model.pare: docs/format.md in C99, an example to start from.
 *
 *   cc -O2 -o pare_decode pare_decode.c -lbrotlidec                 (Debian: libbrotli-dev)
 *   cc -O2 -DPARE_RANGE -o pare_decode pare_decode.c -lbrotlidec    reads range-coded files too: pare_range.h
 *   ./pare_decode model.pare model.onnx [LIMIT]                     the most bytes that the model may have; 64 MiB
 *
 * It ends with 1 and says why when the packed file is damaged. Numbers in memory are taken to be little-endian. */
#include <brotli/decode.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "pare_reference.h"
#include "sha256.h"

enum { BROTLI = 1, RANGE = 2, SKELETON = 4, TREE = 8 };
enum { LITERAL, INT8, STEP16, STEP32, PALETTE, NIBBLES, PLANES, HALF, SPARSE = 8, COLUMNS = 16, RANGED = 32 };
enum { LEAF, MODEL, GRAPH, NODE, ATTRIBUTE, TENSOR, VALUE, TYPE, TENSOR_TYPE, SHAPE, FUNCTION, SPARSE_TENSOR };
enum { QUOTED = 3, DEPTH_LIMIT = 32, RANK_LIMIT = 32, RANGE_LIMIT = 1 << 22 };
static const uint8_t NESTED[][3] = { /* kind of message, field, kind of the message inside */
    {MODEL, 7, GRAPH}, {MODEL, 8, LEAF}, {MODEL, 14, LEAF}, {MODEL, 25, FUNCTION}, {GRAPH, 1, NODE},
    {GRAPH, 5, TENSOR}, {GRAPH, 11, VALUE}, {GRAPH, 12, VALUE}, {GRAPH, 13, VALUE}, {GRAPH, 14, LEAF},
    {GRAPH, 15, SPARSE_TENSOR}, {NODE, 5, ATTRIBUTE}, {ATTRIBUTE, 5, TENSOR}, {ATTRIBUTE, 6, GRAPH},
    {ATTRIBUTE, 10, TENSOR}, {ATTRIBUTE, 11, GRAPH}, {VALUE, 2, TYPE}, {TYPE, 1, TENSOR_TYPE}, {TENSOR_TYPE, 2, SHAPE},
    {SHAPE, 1, LEAF}, {FUNCTION, 7, NODE}, {FUNCTION, 9, LEAF}, {SPARSE_TENSOR, 1, TENSOR}, {SPARSE_TENSOR, 2, TENSOR}};
typedef struct { const uint8_t *data; uint64_t at, size; } Part;
static uint8_t *out;
static uint64_t size, used;   /* of the file; what of it is written */
static Part parts[3], range;  /* skeleton, values, gaps; the range-coded stream */
static int ranged_skeleton, priming, quoting;

static void stop(const char *why) { fprintf(stderr, "pare_decode: %s\n", why); exit(1); }
static void damaged(const char *what) {
    fprintf(stderr, "pare_decode: the packed file is damaged: %s\n", what);
    exit(1);
}
static void *room(uint64_t bytes) {
    void *found = calloc(bytes ? bytes : 1, 1);
    if (!found) stop("out of memory");
    return found;
}

static uint8_t *claim(uint64_t length) { /* the next bytes of the file */
    if (length > size - used) damaged("it holds more than it says");
    used += length;
    return out + used - length;
}

static void message(int kind, int depth);
#ifdef PARE_RANGE
#include "pare_range.h"
#else
static void range_start(int skeleton) { (void)skeleton, stop("it is range-coded: build with -DPARE_RANGE"); }
static uint8_t text_byte(uint32_t slot) { return (uint8_t)slot; }
static void weights(int8_t *to, uint64_t rows, uint64_t columns, uint64_t width, int bits) {
    (void)to, (void)rows, (void)columns, (void)width, (void)bits;
}
#endif

/* ---- What the parser reads from. ---- */
static void cut(int part, void *to, uint64_t length) {
    Part *p = &parts[part];
    if (length > p->size - p->at) damaged("one of its parts ends early");
    memcpy(to, p->data + p->at, length);
    p->at += length;
}

static void take(uint8_t *to, uint64_t length, uint32_t slot) {
    if (!ranged_skeleton) cut(0, to, length);
    else for (uint64_t i = 0; i < length; i++) to[i] = text_byte(slot);
}

static uint64_t number(uint32_t slot) {
    uint64_t found = 0;
    for (int place = 0; place < 10; place++) {
        uint8_t byte;
        take(&byte, 1, slot);
        found |= (uint64_t)(byte & 127) << 7 * place;
        if (byte < 128) return found;
    }
    damaged("a number does not end");
    return 0;
}

static uint64_t written(uint8_t *to, uint64_t n) { /* a number's bytes; returns how many they are */
    uint64_t length = 0;
    for (; n > 127; n >>= 7) to[length++] = (uint8_t)(n & 127) | 128;
    to[length++] = (uint8_t)n;
    return length;
}

static void put_number(uint64_t n) {
    uint8_t bytes[10];
    uint64_t length = written(bytes, n);
    memcpy(claim(length), bytes, length);
}

static void put_length_before(uint64_t start) { /* in front of what was written since */
    uint8_t bytes[10];
    uint64_t inside = used - start, length = written(bytes, inside);
    claim(length);
    memmove(out + start + length, out + start, inside);
    memcpy(out + start, bytes, length);
}

static void literal(uint32_t slot) {
    uint64_t length = number(slot);
    take(claim(length), length, slot);
}

/* ---- Payloads. ---- */
/* Indices of the elements that are stored: all `count`, or those that gaps lead to. Returns how many there are. */
static uint64_t places(uint64_t *found, uint64_t count, int sparse, uint32_t slot) {
    uint64_t n = 0, at = 0;
    if (!sparse) for (; n < count; n++) found[n] = n;
    for (uint64_t left = sparse ? number(slot) : 0; left; left--) {
        uint8_t gap;
        cut(2, &gap, 1);
        at += gap;
        if (gap == 255) continue;
        if (at >= count) damaged("a weight lies outside its tensor");
        found[n++] = at++;
    }
    return n;
}

static float from_half(const uint8_t *bytes) { /* a float16, which the format keeps finite */
    uint32_t h = bytes[0] | (uint32_t)bytes[1] << 8, exponent = h >> 10 & 31;
    float found = (float)(exponent ? (h & 1023) | 1024 : h & 1023) / (1 << 24);
    for (uint32_t i = 1; i < exponent; i++) found *= 2;
    return h >> 15 ? -found : found;
}

static void planes(uint8_t *to, int kind, uint64_t count, uint64_t width, uint32_t slot) {
    uint64_t *at = room(8 * count), n = places(at, count, kind & SPARSE, slot);
    memset(to, 0, count * width);
    for (uint64_t i = 0; i < width; i++)
        for (uint64_t k = 0; k < n; k++) cut(1, to + at[k] * width + i, 1);
    free(at);
}

static void symbols(int8_t *found, int kind, uint64_t rows, uint64_t columns, uint32_t slot) {
    uint64_t count = rows * columns, across = kind & COLUMNS ? rows : columns;
    int8_t *scanned = room(count);
    if (kind & RANGED) {
        uint8_t bits;
        take(&bits, 1, slot);
        uint64_t width = number(slot);
        if (bits > 7 || !width || width > columns || !(range.data || priming)) damaged("weights");
        weights(scanned, count / across, across, width, bits);
    } else planes((uint8_t *)scanned, kind, count, 1, slot);
    for (uint64_t i = 0; i < count; i++) found[i] = scanned[kind & COLUMNS ? i % columns * rows + i / columns : i];
    free(scanned);
}

static void payload(uint32_t slot, const uint64_t *dims, int rank) { /* rank -1: rows and columns are stored */
    uint8_t kind, width = 1, entries = 0, steps[4] = {0}, table[2048];
    take(&kind, 1, slot);
    int what = kind & 7;
    if (what == LITERAL) { literal(slot); return; }
    uint64_t rows = rank < 0 ? number(slot) : rank ? dims[0] : 1, columns = rank < 0 ? number(slot) : 1, count = 0;
    int known = rank <= RANK_LIMIT;
    for (int i = 1; known && i < rank; i++) known = !__builtin_mul_overflow(columns, dims[i], &columns);
    if (what == PALETTE || what == PLANES) take(&width, 1, slot);
    uint64_t bits = what == STEP16 || what == STEP32 || what == HALF ? 32 : what == NIBBLES ? 4 : 8u * width;
    if (!known || kind > 63 || !(width == 1 || width == 2 || width == 4 || width == 8) ||
        __builtin_mul_overflow(rows, columns, &count) || !count || count > (8 * (size - used) + 4) / bits)
        damaged("a payload is more than the file holds");
    uint8_t *to = claim((count * bits + 7) / 8);
    if (what == PLANES) { planes(to, kind, count, width, slot); return; }
    if (what == HALF) {
        uint8_t *halves = room(2 * count);
        planes(halves, kind, count, 2, slot);
        for (uint64_t i = 0; i < count; i++) memcpy(to + 4 * i, &(float){from_half(halves + 2 * i)}, 4);
        free(halves);
        return;
    }
    if (what == STEP16 || what == STEP32) take(steps, what == STEP16 ? 2 : 4, slot);
    if (what == PALETTE) take(&entries, 1, slot), take(table, (entries + 1u) * width, slot);
    int8_t *integers = room(count);
    symbols(integers, kind, rows, columns, slot);
    float step = from_half(steps);
    if (what == STEP32) memcpy(&step, steps, 4);
    memset(to, 0, (count * bits + 7) / 8);
    for (uint64_t i = 0; i < count; i++) {
        uint8_t integer = (uint8_t)integers[i];
        if (what == INT8) to[i] = integer;
        else if (what == NIBBLES) to[i / 2] |= (uint8_t)((integer & 15) << (i & 1) * 4);
        else if (what != PALETTE) memcpy(to + 4 * i, &(float){(float)integers[i] * step}, 4);
        else if (integer > entries) damaged("an index lies outside its palette");
        else memcpy(to + i * width, table + integer * width, width);
    }
    free(integers);
}

/* ---- The parser. ---- */
static void field(int kind, uint64_t tag, uint64_t *dims, int *rank, int depth) {
    uint64_t name = tag >> 3, start, n;
    uint32_t slot = (uint32_t)kind << 6 | 32 | (uint32_t)(name < 31 ? name : 31), wire = tag & 7;
    int inside = -1;
    for (size_t i = 0; i < sizeof NESTED / 3; i++)
        if (NESTED[i][0] == kind && NESTED[i][1] == name) inside = NESTED[i][2];
    put_number(tag);
    start = used;
    if (wire == 0) {
        put_number(n = number(slot));
        if (kind == TENSOR && name == 1 && ++*rank <= RANK_LIMIT) dims[*rank - 1] = n;
    } else if (wire == 2) {
        if (inside >= 0) message(inside, depth + 1);
        else if (kind == TENSOR && (name == 4 || name == 9)) payload(slot, dims, *rank);
        else literal(slot);
        put_length_before(start);
    } else if (wire == 1 || wire == 5) take(claim(wire == 1 ? 8 : 4), wire == 1 ? 8 : 4, slot);
    else damaged("a message has an unknown wire type");
}

static void message(int kind, int depth) {
    uint64_t tag, name = 0, dims[RANK_LIMIT];
    int rank = 0;
    if (depth > DEPTH_LIMIT) damaged("its messages are nested too deeply");
    for (; (tag = number((uint32_t)kind << 6 | (uint32_t)(name < 31 ? name : 31))); name = tag >> 3) {
        if ((tag & 7) != QUOTED) { field(kind, tag, dims, &rank, depth); continue; }
        Part kept = parts[0];
        if (ranged_skeleton || quoting || tag >> 3 > REFERENCE_SIZE) damaged("a field is quoted where none can be");
        parts[0] = (Part){reference, tag >> 3, REFERENCE_SIZE};
        quoting = 1;
        field(kind, tag = number(0), dims, &rank, depth);
        quoting = 0;
        parts[0] = kept;
    }
}

/* ---- The file. ---- */
static void open_brotli(Part stream) { /* its content: two lengths, then skeleton, values and gaps */
    size_t room_for = size + (64 << 10);
    uint8_t *plain = room(room_for);
    if (BrotliDecoderDecompress(stream.size, stream.data, &room_for, plain) != BROTLI_DECODER_RESULT_SUCCESS)
        damaged("its brotli stream cannot be read, or is longer than what it stands for");
    parts[0] = (Part){plain, 0, room_for};
    uint64_t first = number(0), second = number(0), at = parts[0].at;
    if (first > room_for - at || second > room_for - at - first) damaged("its brotli stream is shorter than its parts");
    parts[0] = (Part){plain + at, 0, first};
    parts[1] = (Part){plain + at + first, 0, second};
    parts[2] = (Part){plain + at + first + second, 0, room_for - at - first - second};
}

static Part read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) stop("cannot read the packed file");
    Part found = {NULL, 0, (uint64_t)ftell(file)};
    uint8_t *data = room(found.size);
    rewind(file);
    if (fread(data, 1, found.size, file) != found.size) stop("cannot read the packed file");
    fclose(file);
    found.data = data;
    return found;
}

int main(int count, char **words) {
    if (count < 3) stop("usage: pare_decode PACKED FILE [LIMIT]");
    uint64_t limit = count > 3 ? strtoull(words[3], NULL, 10) : 64 << 20, digest = 0;
    Part data = read_file(words[1]);
    if (data.size < 13 || memcmp(data.data, "\x97PR", 3)) stop("not a packed model");
    if (data.data[3] >> 4 != 1) stop("this format version is not known here");
    int flags = data.data[3] & 15;
    for (int i = 4; i < 12; i++) digest = digest << 8 | data.data[i];
    parts[0] = (Part){data.data, 12, data.size};
    if ((size = number(0)) > limit) stop("the unpacked file would be longer than the limit");
    uint64_t length = (flags & 3) == (BROTLI | RANGE) ? number(0) : flags & BROTLI ? data.size - parts[0].at : 0;
    data.at = parts[0].at;
    parts[0] = (Part){NULL, 0, 0};
    if (!(flags & 3) || (flags & 6) == SKELETON || length > data.size - data.at) damaged("its header");
    read_reference();
    if (flags & BROTLI) open_brotli((Part){data.data + data.at, 0, length});
    if (flags & RANGE) range = (Part){data.data + data.at + length, 0, data.size - data.at - length};
    if (flags & RANGE) range_start(flags & SKELETON);
    ranged_skeleton = flags & SKELETON;
    out = room(size);
    if (flags & TREE) message(MODEL, 0);
    while (!(flags & TREE) && used < size) {
        literal(1);
        if (used < size) payload(2, NULL, -1);
    }
    for (int i = 0; i < 3; i++) if (parts[i].at != parts[i].size) damaged("some bytes were not used");
    if (used != size || range.at < range.size || sha256(out, size) != digest)
        damaged("the sha256 of what it unpacks to is another than the file's that was packed");
    FILE *file = fopen(words[2], "wb");
    if (!file || fwrite(out, 1, size, file) != size || fclose(file)) stop("cannot write the file");
    return 0;
}
