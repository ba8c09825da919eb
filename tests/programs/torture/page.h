// The contents of a page: what was written there, what must be read back, and what to say when it is not.
//
// A page is generated from its tag, so that a wrong page names itself: zeros, an older page of the same
// place, a page of another thread, or torn. Word COUNT_WORD carries a counter on top, so that one word can
// be dirtied without rewriting the page (that is what a lost write looks like).
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PAGE = 4096, WORDS = PAGE / 8, COUNT_WORD = 7 };

// Kinds of content, in the low bits of a tag; one for each place a pager can put a page.
enum { KIND_RANDOM, KIND_TEXT, KIND_FILLED, KIND_SPARSE, KINDS };

// What a page must hold. tag 0: zeros. freed: MADV_FREE was called, so zeros are right as well.
typedef struct {
    uint64_t tag;
    uint32_t count;
    uint32_t freed;
} Expect;

static inline uint64_t mix(uint64_t x) {
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static inline uint64_t page_word(uint64_t tag, unsigned i) {
    if (tag == 0) return 0;
    switch (tag & 7) {
    case KIND_RANDOM: return mix(tag + i * 0x9e3779b97f4a7c15u);
    case KIND_TEXT: return i % 16 ? 0x6f6c6c6568202020u + (i & 7) : mix(tag + i);
    case KIND_FILLED: return mix(tag);
    default: return i == 0 || i == WORDS - 1 ? mix(tag + i) : 0;
    }
}

static inline uint64_t expect_word(const Expect *e, unsigned i) {
    return page_word(e->tag, i) + (i == COUNT_WORD ? e->count : 0);
}

static inline bool page_is_zero(const uint64_t *p) {
    uint64_t any = 0;
    for (unsigned i = 0; i < WORDS; i++) any |= p[i];
    return any == 0;
}
