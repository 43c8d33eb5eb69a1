/* The reference of docs/format.md: fields of it are quoted, and it primes the models of range-coded skeletons. */
enum { REFERENCE_SIZE = 1288 };
static uint8_t reference[REFERENCE_SIZE];
static const char REFERENCE85[] = /* Python's base64.b85encode of it */
    "2nsq13ITKy0d*n?RB~Z%b8v5SWhx2;aAk6BKmb4jKmkAlpaBN}0165LbqWD?5&?H22U2BoXkl<=0165LcM1V`5&?N422EjfO?7Ml3JL*v5&?Q5"
    "2UBlmbZudHDhdQ)cxiJO|NsC0|NsC0{{f%@0ssIC3ITcw0YM4@LJ|Q(A`(ntd1Z1=Z*py6Y-xI7bZKvHDhdQ)cxiJO|NsC0|NsC0{{f%@0stxs"
    "2W4<`X>4z96|BW4H=qFl000UK0YeG_L=pi-A_hlcbZBLADhdQ)cxiJO0iXc_000UK0YwS{MiK!>A_hZmZew9|DhdQ)cxiJO0iXc_000UK0Y?%6"
    "NFoPQX=iP3X=DHj3IRt70Z0-7Ng@MHb!-3%3IRz90ZIx1OA-N0A_PNhX>b4v3IR+C0Zj@4P6`1}3IR|O0Z}3nLSb}cXijf(ZDDL_dSP^FZ*Bkz"
    "3IS0P0a79hL3U+wVP|DfZ*OcW3Jhyya&Bd8Uvp?-aAiOOKmwov2LLJx2Xl0CX=G({KmtGlpaBN}0165LVG03a5&=^p5JY8hbzyFFX?kT$X>Mg<"
    "asUbn0b>dQWD)^XA`nDnadlyCbZL5JOlfXqVR8Tp3IS9K0c8pSW)cBaA`Ve?VQzG3dSy&$Ze?L|0165LRSE%R3IS#k0ahXqL}hVxVQzG3dSy&$"
    "Ze?L|0165LRtf=U3IS*m0aqdfLvL<&DhdT>a&L8T7!aTV0stxs1aM(wb3g$=0YCvj0iXc~04fRxb98cPWMy+e0zd+w0S5p83JL*N5&>8u1X5*e"
    "bpQ$q0aywFX$k>q5&>Bv1Ve9bb}9-4aA9O~KmkAjKmkAjpaBN}0165LSqcGI5&>Ew13_eD0165LS`q?bVIl-lWo&f-3JL;YVG;siVj>YoY;R&="
    "Y(aKqa$#p>P;YN+0165MVPX;jVPhf(Mr>hpbY*S;3JL;YV+sLd3ISvi25)tAaCLMd1V?3UZ7K=|baG*Cb3zyapaB8^0165PX>M?JbP54s3ISpg"
    "0cj!xLvL<&0165LX%YcyA_P)pY;^z%3IS>o0c#=$O<{OYZ*OcW3Jhyya&Bd8Uvp?-aAiOOKmwov2LLJx2Xl0CX=G({KmtGlpaBN}0165LYYG8l"
    "3ISvi0c;`!LvL<&0165LY!U%&A_P)pY;^z%3IS~r0d67(O<{OYZ*OcW3Jhyya&Bd8Uvp?-aAiOOKmwov2LLJx2Xl0CX=G({KmtGlpaBN}0165L"
    "ZV~}+A_qonVRUq5ZU71j0dEQcWeNdi5&>``1V?3UZ7K=|baG*Cb3zyapaB8^0165La1sG=A_P)pY;^z%3ITBn0cQ#UXc7i&Z)a(Ab0P#sWo>OL"
    "3I=p?VQzCm7y+OG0ssIK0cR=*5C{PX0|)~U0YU*`N+JL+0s#Oj2oMkfLIGk*G5{<D0RSopAP5i$0|)~U0YU*|N+JL+0s#Oj2p|vvLIGq-G5{<D"
    "0RSopKnQ>W5CK8~WlACdF9HDoDhNOj0YU+0N-_W}1OWgl2nq;55CK8~XG$UfF9HDoDhLV?0YU+2N-_W}1OWhA3I%CyaCLMN3J3ub3K9ikVRU0?"
    "015~L015~o015~o000000AdOTY;R|2baN642mulb5(Q#mbYo}$3J3}S000000741?5E1|Y";

static void read_reference(void) { /* base85, as in Python's base64 module */
    static const char DIGITS[] =
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~";
    for (size_t i = 0; i < sizeof REFERENCE85 - 1; i += 5) {
        uint32_t four = 0;
        for (size_t k = i; k < i + 5; k++)
            four = four * 85 + (k < sizeof REFERENCE85 - 1 ? (uint32_t)(strchr(DIGITS, REFERENCE85[k]) - DIGITS) : 84);
        for (size_t k = 0; k < 4 && i / 5 * 4 + k < REFERENCE_SIZE; k++)
            reference[i / 5 * 4 + k] = four >> 8 * (3 - k) & 255;
    }
}
