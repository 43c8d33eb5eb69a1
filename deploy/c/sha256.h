/* SHA-256 (FIPS 180-4): the first eight bytes of it. */
static uint32_t turn(uint32_t x, int n) { return x >> n | x << (32 - n); }
static uint64_t sha256(const uint8_t *data, uint64_t length) {
    static const uint32_t K[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    uint32_t h[] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    uint32_t v[8], w[64];
    uint64_t end = (length + 72) / 64 * 64;
    for (uint64_t start = 0; start < end; start += 64) {
        memset(w, 0, sizeof w);
        for (uint64_t i = start; i < start + 64; i++) {
            uint64_t byte = i < length ? data[i] : i == length ? 128 : 0;
            if (i >= end - 8) byte = 8 * length >> 8 * (end - 1 - i) & 255;
            w[(i - start) / 4] |= (uint32_t)byte << 8 * (3 - i % 4);
        }
        for (int i = 16; i < 64; i++)
            w[i] = w[i - 16] + w[i - 7] + (turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ w[i - 15] >> 3) +
                   (turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ w[i - 2] >> 10);
        memcpy(v, h, 32);
        for (int i = 0; i < 64; i++) {
            uint32_t a = v[0], e = v[4], t = v[7] + K[i] + w[i] + ((e & v[5]) ^ (~e & v[6]));
            t += turn(e, 6) ^ turn(e, 11) ^ turn(e, 25);
            memmove(v + 1, v, 28);
            v[4] += t;
            v[0] = t + (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & v[2]) ^ (a & v[3]) ^ (v[2] & v[3]));
        }
        for (int i = 0; i < 8; i++) h[i] += v[i];
    }
    return (uint64_t)h[0] << 32 | h[1];
}
