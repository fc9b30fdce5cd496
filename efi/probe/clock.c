/* The tests "rtc" and "counter": both live on the same seconds that are waited for. */
#include "arch.h"
#include "probe.h"

#define STEP_US 1000
#define MOST_STEPS 2500 /* two changes of the second take two seconds at most */
#define STALL_US 100000

typedef struct {
    u64 counter;
    efi_time time;
} sample;

static sample start, seconds[2]; /* when it began, and where the second changed */
static u32 changes;
static int measured, monotonic;
static efi_status time_status = EFI_NOT_FOUND; /* also when reading the clock ended in a fault */
static efi_time_capabilities capabilities;

static efi_status take(sample *at) {
    at->counter = counter();
    return runtime->get_time(&at->time, &capabilities);
}

/* Reads the clock until its second has changed twice, or for so long that it stands still. */
static void measure(void) {
    sample now;
    u32 second;
    if (measured) return;
    measured = monotonic = 1;
    time_status = take(&start);
    if (time_status != EFI_SUCCESS) return;
    now = start;
    second = start.time.second;
    u64 last = start.counter;
    for (u32 step = 0; step < MOST_STEPS && changes < COUNT(seconds); step++) {
        boot->stall(STEP_US);
        if (take(&now) != EFI_SUCCESS) break;
        if (now.counter < last) monotonic = 0;
        last = now.counter;
        if (milliseconds_of(now.counter - start.counter) > MOST_STEPS) break;
        if (now.time.second == second) continue;
        second = now.time.second;
        seconds[changes++] = now;
    }
    if (!changes) seconds[0] = now;
}

/* The last one that was taken: where the second changed, or the end of the wait. */
static const sample *latest(void) { return &seconds[changes ? changes - 1 : 0]; }

static void put_time(const char *key, const efi_time *time) {
    begin_array(key);
    put_number(0, time->year);
    put_number(0, time->month);
    put_number(0, time->day);
    put_number(0, time->hour);
    put_number(0, time->minute);
    put_number(0, time->second);
    put_number(0, time->nanosecond);
    put_signed(0, time->zone);
    put_number(0, time->daylight);
    end_array();
}

static u32 days_in(u32 month, u32 year) {
    if (month == 2) return year % 4 || (year % 100 == 0 && year % 400) ? 28 : 29;
    return month == 4 || month == 6 || month == 9 || month == 11 ? 30 : 31;
}

static efi_time an_hour_on(efi_time time) {
    if (++time.hour < 24) return time;
    time.hour = 0;
    if (++time.day <= days_in(time.month, time.year)) return time;
    time.day = 1;
    if (++time.month <= 12) return time;
    time.month = 1;
    time.year++;
    return time;
}

/* Sets the clock on and back. It was read where its second changed, so that it comes back as it was. */
static void set_and_restore(void) {
    efi_time now, other, read = {0};
    if (runtime->get_time(&now, 0) != EFI_SUCCESS) return;
    other = an_hour_on(now);
    put_status("set_status", runtime->set_time(&other));
    if (runtime->get_time(&read, 0) == EFI_SUCCESS) put_time("set_read", &read);
    put_status("restore_status", runtime->set_time(&now));
}

test_result test_rtc(void) {
    measure();
    record_begin("rtc");
    put_status("get_status", time_status);
    if (time_status == EFI_SUCCESS) {
        put_time("time", &start.time);
        put_number("resolution", capabilities.resolution);
        put_number("accuracy", capabilities.accuracy);
        put_bool("sets_to_zero", capabilities.sets_to_zero);
        put_time("later", &latest()->time);
        put_number("elapsed_ms", milliseconds_of(latest()->counter - start.counter));
        set_and_restore();
    }
    record_end();
    return DONE;
}

/* Seconds since 1970, as if the zone were UTC. */
static u64 epoch(const efi_time *time) {
    u64 days = 0;
    for (u32 year = 1970; year < time->year && year < 10000; year++) days += days_in(2, year) + 337;
    for (u32 month = 1; month < time->month && month <= 12; month++) days += days_in(month, time->year);
    return ((days + time->day - 1) * 24 + time->hour) * 3600 + time->minute * 60u + time->second;
}

static void put_sample(const sample *at) {
    begin_array(0);
    put_hex(0, at->counter);
    put_number(0, epoch(&at->time));
    put_number(0, at->time.nanosecond);
    end_array();
}

test_result test_counter(void) {
    if (!has_counter()) return SKIPPED;
    measure();
    u64 before = counter();
    boot->stall(STALL_US);
    u64 after = counter();
    for (u32 i = 0; i < 1000 && monotonic; i++) {
        u64 next = counter();
        monotonic = next >= after;
        after = next;
    }
    after -= before;
    record_begin("counter");
    put_number("frequency", counter_frequency());
    begin_array("samples");
    if (time_status == EFI_SUCCESS) {
        if (changes < COUNT(seconds)) put_sample(&start); /* the clock stands still, or nearly */
        for (u32 i = 0; i < (changes ? changes : 1); i++) put_sample(&seconds[i]);
    }
    end_array();
    put_number("stall_us", STALL_US);
    put_number("stall_ticks", after);
    put_bool("monotonic", monotonic);
    record_end();
    return DONE;
}
