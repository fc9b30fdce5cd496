/* The test "timer": the virtual timer raises its interrupt, and firmware's own timer events arrive. */
#include "arch.h"
#include "gic.h"
#include "probe.h"

#define VIRTUAL_TIMER 27 /* its private interrupt (Base System Architecture, section 3.9) */
#define ENABLE 1
#define MASKED 2
#define CONDITION 4

#define GICD_ISPENDR0 0x200
#define GICC_HPPIR 0x18
#define GICR_TYPER 0x8
#define GICR_ISPENDR0 0x10200 /* in the second frame of 64 KiB */
#define GICR_LAST (1u << 4)
#define GICR_VIRTUAL_LPIS (1u << 1)
#define GICR_STRIDE 0x20000
#define MOST_REDISTRIBUTORS 512

#define EVENT_MS 50
#define EVENT_PATIENCE_MS 1000

typedef struct {
    int met, pending, readable, hppir_read, restored;
    u64 late, hppir;
} timer_outcome;

/* The redistributor of this CPU: the one whose affinity is ours. */
static u64 own_redistributor(const gic_description *gic) {
    u64 mpidr = read_affinity(), at = 0;
    u32 wanted = (u32)(mpidr & 0xffffff) | (u32)(mpidr >> 32 & 0xff) << 24;
    for (u32 i = 0; i < MOST_REDISTRIBUTORS && at + GICR_STRIDE <= gic->redistributor_size; i++) {
        u32 low, high;
        if (!peek32(gic->redistributor + at + GICR_TYPER, &low)) return 0;
        if (!peek32(gic->redistributor + at + GICR_TYPER + 4, &high)) return 0;
        if (high == wanted) return gic->redistributor + at;
        if (low & GICR_LAST) return 0;
        at += low & GICR_VIRTUAL_LPIS ? 2 * GICR_STRIDE : GICR_STRIDE;
    }
    return 0;
}

/* With interrupts masked: sets the timer to go off a millisecond from now, and looks what comes of it. */
static timer_outcome fire(u64 pending_register, u64 hppir_register) {
    timer_outcome out = {0};
    u32 word = 0, millisecond = counter_frequency() / 1000;
    usize interrupts = mask_interrupts();
    u32 control = read_timer_control();
    u64 compare = read_timer_compare(), due = counter() + millisecond, limit = due + 100ull * millisecond;
    write_timer_compare(due);
    write_timer_control(ENABLE);
    for (u64 now = counter(), spins = 0; !out.met && now < limit && spins < 10000000; now = counter(), spins++)
        out.met = (read_timer_control() & CONDITION) != 0;
    out.late = counter() - due;
    /* The line may take a moment to the interrupt controller. */
    for (u32 i = 0; i < 1000 && pending_register && !out.pending; i++) {
        out.readable = peek32(pending_register, &word);
        out.pending = out.readable && (word >> VIRTUAL_TIMER & 1);
    }
    if (hppir_register && peek32(hppir_register, &word)) {
        out.hppir = word & 0x3ff;
        out.hppir_read = 1;
    } else {
        out.hppir_read = gic_highest_pending(&out.hppir);
    }
    write_timer_control(MASKED);
    write_timer_compare(compare);
    write_timer_control(control & (ENABLE | MASKED));
    out.restored = read_timer_compare() == compare && ((read_timer_control() ^ control) & (ENABLE | MASKED)) == 0;
    unmask_interrupts(interrupts);
    return out;
}

static void put_interrupt(void) {
    u32 madt_version;
    gic_description gic = describe_gic(&madt_version);
    int v3 = gic_is_v3(&gic);
    u64 pending_register = 0, hppir_register = 0;
    if (v3) {
        u64 frame = own_redistributor(&gic);
        if (frame) pending_register = frame + GICR_ISPENDR0;
    } else if (gic.version) {
        pending_register = gic.distributor + GICD_ISPENDR0;
        if (gic.cpu_interface) hppir_register = gic.cpu_interface + GICC_HPPIR;
    }
    timer_outcome out = fire(pending_register, hppir_register);
    put_bool("istatus", out.met);
    put_number("ticks_late", out.late);
    if (out.readable) {
        put_bool("pending", out.pending);
        put_text("method", v3 ? "gicr-ispendr" : "gicd-ispendr");
    } else {
        put_null("pending");
        put_null("method");
    }
    if (out.hppir_read) put_number("hppir", out.hppir);
    put_bool("restored", out.restored);
}

/* A one-shot event, by whatever firmware takes its ticks from. */
static void put_event(void) {
    efi_event event;
    u64 elapsed = 0;
    int fired = 0;
    efi_status status = boot->create_event(EFI_EVENT_TIMER, EFI_TPL_CALLBACK, 0, 0, &event);
    if (status == EFI_SUCCESS) {
        u64 start = counter();
        status = boot->set_timer(event, EFI_TIMER_RELATIVE, EVENT_MS * 10000);
        for (u32 i = 0; status == EFI_SUCCESS && !fired && i < EVENT_PATIENCE_MS; i++) {
            boot->stall(1000);
            fired = boot->check_event(event) == EFI_SUCCESS;
            elapsed = milliseconds_of(counter() - start);
            if (elapsed > EVENT_PATIENCE_MS) break;
        }
        boot->close_event(event);
    }
    begin_object("event");
    put_status("status", status);
    put_number("armed_ms", EVENT_MS);
    put_bool("fired", fired);
    put_number("elapsed_ms", elapsed);
    end_object();
}

test_result test_timer(void) {
    record_begin("timer");
    if (has_counter()) put_interrupt();
    put_event();
    record_end();
    return has_counter() ? DONE : SKIPPED;
}
