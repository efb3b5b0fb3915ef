// The instructions of check/ir.py: nine words each.
#pragma once
#include <stdint.h>

typedef struct {
    int32_t op, d, a, b, base, lo, hi, step, source;
} row;

enum {
    IR_MOV, IR_ADD, IR_SUB, IR_MUL, IR_AND, IR_OR, IR_XOR, IR_SHL, IR_SHR, IR_EQ, IR_NE, IR_LT, IR_LE, IR_NOT,
    IR_LOAD, IR_STORE, IR_LOADK, IR_BR, IR_JMP, IR_WAIT, IR_FAIL, IR_CHOOSE, IR_REACH, IR_END
};

static inline int reads_a(int32_t op)
{
    return op != IR_JMP && op != IR_FAIL && op != IR_CHOOSE && op != IR_REACH && op != IR_END;
}

static inline int reads_b(int32_t op)
{
    return (op > IR_MOV && op < IR_NOT) || op == IR_STORE;
}

static inline int writes_d(int32_t op)
{
    return op <= IR_NOT || op == IR_LOAD || op == IR_LOADK || op == IR_CHOOSE;
}
