/* Stacks, and the way from one to another: what a call must preserve, and nothing else. */
#include "tests/cuemu/parts.h"

#if defined(__x86_64__)

asm(".text\n"
    ".globl cuemu_switch\n"
    ".type cuemu_switch, @function\n"
    "cuemu_switch:\n"
    "	pushq %rbp\n"
    "	pushq %rbx\n"
    "	pushq %r12\n"
    "	pushq %r13\n"
    "	pushq %r14\n"
    "	pushq %r15\n"
    "	movq %rsp, (%rdi)\n"
    "	movq %rsi, %rsp\n"
    "	popq %r15\n"
    "	popq %r14\n"
    "	popq %r13\n"
    "	popq %r12\n"
    "	popq %rbx\n"
    "	popq %rbp\n"
    "	ret\n"
    ".size cuemu_switch, .-cuemu_switch\n");

void *fiber_begin(char *stack, size_t bytes, void (*entry)(void))
{
	uintptr_t *top = (uintptr_t *)(((uintptr_t)stack + bytes) & ~(uintptr_t)63);

	/* as after a call: the stack is 8 off a multiple of 16 when @entry begins */
	*--top = 0;
	*--top = (uintptr_t)entry;
	for (int i = 0; i < 6; i++)
		*--top = 0;
	return top;
}

#elif defined(__aarch64__)

asm(".text\n"
    ".globl cuemu_switch\n"
    ".type cuemu_switch, %function\n"
    "cuemu_switch:\n"
    "	sub sp, sp, #160\n"
    "	stp x19, x20, [sp]\n"
    "	stp x21, x22, [sp, #16]\n"
    "	stp x23, x24, [sp, #32]\n"
    "	stp x25, x26, [sp, #48]\n"
    "	stp x27, x28, [sp, #64]\n"
    "	stp x29, x30, [sp, #80]\n"
    "	stp d8, d9, [sp, #96]\n"
    "	stp d10, d11, [sp, #112]\n"
    "	stp d12, d13, [sp, #128]\n"
    "	stp d14, d15, [sp, #144]\n"
    "	mov x9, sp\n"
    "	str x9, [x0]\n"
    "	mov sp, x1\n"
    "	ldp x19, x20, [sp]\n"
    "	ldp x21, x22, [sp, #16]\n"
    "	ldp x23, x24, [sp, #32]\n"
    "	ldp x25, x26, [sp, #48]\n"
    "	ldp x27, x28, [sp, #64]\n"
    "	ldp x29, x30, [sp, #80]\n"
    "	ldp d8, d9, [sp, #96]\n"
    "	ldp d10, d11, [sp, #112]\n"
    "	ldp d12, d13, [sp, #128]\n"
    "	ldp d14, d15, [sp, #144]\n"
    "	add sp, sp, #160\n"
    "	ret\n"
    ".size cuemu_switch, .-cuemu_switch\n");

void *fiber_begin(char *stack, size_t bytes, void (*entry)(void))
{
	uintptr_t *top = (uintptr_t *)(((uintptr_t)stack + bytes) & ~(uintptr_t)63);

	top -= 20;
	for (int i = 0; i < 20; i++)
		top[i] = 0;
	top[11] = (uintptr_t)entry; /* x30 */
	return top;
}

#else
#error "tests/cuemu knows how to switch stacks on x86-64 and aarch64"
#endif
