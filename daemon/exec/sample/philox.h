/* The counter-based generator Philox 4x32 with 10 rounds: no state, any draw in one step. */
#pragma once

#include <stdint.h>

/* @out may be @counter. */
void philox_4x32_10(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);
