/* The test "cpu": exception level and identification registers. */
#include "arch.h"
#include "probe.h"

typedef struct {
    const char *name;
    void (*read)(void *value);
} cpu_register;

#ifdef __aarch64__

/* Names that older assemblers do not know stand by their encoding. */
#define REGISTERS(AS)                                                                                     \
    AS(CurrentEL, "CurrentEL")                                                                            \
    AS(MIDR_EL1, "midr_el1")                                                                              \
    AS(MPIDR_EL1, "mpidr_el1")                                                                            \
    AS(ID_AA64PFR0_EL1, "id_aa64pfr0_el1")                                                                \
    AS(ID_AA64PFR1_EL1, "id_aa64pfr1_el1")                                                                \
    AS(ID_AA64DFR0_EL1, "id_aa64dfr0_el1")                                                                \
    AS(ID_AA64ISAR0_EL1, "id_aa64isar0_el1")                                                              \
    AS(ID_AA64ISAR1_EL1, "id_aa64isar1_el1")                                                              \
    AS(ID_AA64MMFR0_EL1, "id_aa64mmfr0_el1")                                                              \
    AS(ID_AA64MMFR1_EL1, "id_aa64mmfr1_el1")                                                              \
    AS(ID_AA64MMFR2_EL1, "s3_0_c0_c7_2")                                                                  \
    AS(CNTFRQ_EL0, "cntfrq_el0")                                                                          \
    AS(CTR_EL0, "ctr_el0")

#define READER(id, text) \
    static void read_##id(void *value) { *(u64 *)value = READ_REGISTER(text); }
REGISTERS(READER)
READER(SCTLR_EL1, "sctlr_el1")
READER(SCTLR_EL2, "sctlr_el2")

#define ENTRY(id, text) {#id, read_##id},
static const cpu_register registers[] = {REGISTERS(ENTRY)};
static const cpu_register control[] = {{"SCTLR_EL1", read_SCTLR_EL1}, {"SCTLR_EL2", read_SCTLR_EL2}};

static u32 faults; /* bit i: the register at i could not be read; the last bit is the control register */

static void put_register(const cpu_register *asked, u32 index) {
    u64 value;
    fault ignored;
    if (catch_fault(asked->read, &value, &ignored))
        faults |= 1u << index;
    else
        put_hex(asked->name, value);
}

test_result test_cpu(void) {
    u32 level = (u32)READ_REGISTER("CurrentEL") >> 2 & 3;
    const cpu_register *own = &control[level == 2];
    record_begin("cpu");
    put_number("el", level);
    begin_object("registers");
    for (u32 i = 0; i < COUNT(registers); i++) put_register(&registers[i], i);
    put_register(own, COUNT(registers));
    put_hex("VBAR", firmware_vbar());
    end_object();
    begin_array("faults");
    for (u32 i = 0; i < COUNT(registers); i++)
        if (faults >> i & 1) put_text(0, registers[i].name);
    if (faults >> COUNT(registers) & 1) put_text(0, own->name);
    end_array();
    record_end();
    return DONE;
}

int has_counter(void) { return 1; }

u32 counter_frequency(void) { return (u32)READ_REGISTER("cntfrq_el0"); }

#else

test_result test_cpu(void) {
    u32 status;
    __asm__ volatile("mrs %0, cpsr" : "=r"(status));
    record_begin("cpu");
    put_number("mode", status & 31);
    begin_object("registers");
    put_hex("CPSR", status);
    put_hex("MIDR", READ_REGISTER("0, %0, c0, c0, 0"));
    put_hex("MPIDR", READ_REGISTER("0, %0, c0, c0, 5"));
    put_hex("ID_PFR0", READ_REGISTER("0, %0, c0, c1, 0"));
    put_hex("ID_PFR1", READ_REGISTER("0, %0, c0, c1, 1"));
    put_hex("ID_MMFR0", READ_REGISTER("0, %0, c0, c1, 4"));
    if (has_counter()) put_hex("CNTFRQ", counter_frequency());
    put_hex("SCTLR", READ_REGISTER("0, %0, c1, c0, 0"));
    end_object();
    begin_array("faults");
    end_array();
    record_end();
    return DONE;
}

/* ID_PFR1.GenTimer */
int has_counter(void) { return READ_REGISTER("0, %0, c0, c1, 1") >> 16 & 15; }

u32 counter_frequency(void) { return has_counter() ? READ_REGISTER("0, %0, c14, c0, 0") : 0; }

#endif

u64 counter(void) { return has_counter() ? read_counter() : 0; }

u64 milliseconds_of(u64 ticks) {
    u32 rest, frequency = counter_frequency();
    return frequency ? divide(ticks * 1000, frequency, &rest) : 0;
}
