/* The Linux probe: /init of an initial RAM disk that says what it sees of the virtual machine (docs/probe-wire.md). */
#ifndef ARMVM_PROBE_H
#define ARMVM_PROBE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __aarch64__
#define STATE "aarch64"
#else
#define STATE "aarch32"
#endif

#define FORMAT(string, first) __attribute__((format(printf, string, first)))

enum { NAME_SIZE = 128, TEXT_SIZE = 512, PATH_SIZE = 1024, MOST_NAMES = 1024 };

/* ---- console.c: the line to the host. Nothing here ever waits for ever. ---- */

/* Chooses where to speak, again when the consoles have changed. */
void console_open(void);
/* For poll; -1 without a console, or when it has hung up. */
int console_descriptor(void);
void console_write(const char *bytes, size_t length);
/* Text for people, which readers of the wire format skip. */
void console_remark(const char *format, ...) FORMAT(1, 2);
/* The next whole line that has arrived, without its end; false when there is none. */
bool console_line(char *line, size_t size);
/* Waits until what was written has left, a few seconds at most. */
void console_flush(void);

/* ---- wire.c: records ---- */

/* Before anything is forked: the fragments' count is shared, so that whoever comes after a crash goes on with it. */
void wire_start(void);
/* Ends a record that a crash has left unfinished. */
void wire_mend(void);

void record_begin(const char *type);
void record_end(void);

/* Inside a list, name is NULL. A value of NULL is null. */
void put_text(const char *name, const char *value);
void put_number(const char *name, long long value);
void put_flag(const char *name, bool value);
void put_null(const char *name);
void put_address(const char *name, unsigned long long value);
void put_hex(const char *name, const uint8_t *bytes, size_t length);
void put_base64(const char *name, const uint8_t *bytes, size_t length);
void list_begin(const char *name);
void list_end(void);
void object_begin(const char *name);
void object_end(void);

/* A record of type "error": something went wrong that is no finding about the machine. */
void say_error(const char *format, ...) FORMAT(1, 2);

/* ---- files.c: what the kernel tells in small files, bounded ---- */

struct names {
    size_t count;
    char name[MOST_NAMES][NAME_SIZE];
};

/* At most size bytes; -1 when it cannot be read. */
ssize_t read_bytes(const char *path, void *bytes, size_t size);
/* Without the line end; false (and "") when it cannot be read. */
bool read_text(char *text, size_t size, const char *format, ...) FORMAT(3, 4);
/* -1 when there is no number. */
long long read_number(const char *format, ...) FORMAT(1, 2);
/* The last part of a symbolic link's target: a driver's name. */
bool read_link_name(char *name, size_t size, const char *format, ...) FORMAT(3, 4);
/* What a path stands for, all links followed. */
bool real_path(char *path, size_t size, const char *format, ...) FORMAT(3, 4);
bool exists(const char *format, ...) FORMAT(1, 2);
/* The entries of a folder in their natural order (cpu2 before cpu10), at most MOST_NAMES. The result is overwritten by
   the next call. */
const struct names *list_folder(const char *path);
/* Copies the value of word= on the kernel's command line. */
bool command_line_word(const char *word, char *value, size_t size);

/* ---- attempt.c: what may hang happens in a process of its own ---- */

long long now_ms(void);
void sleep_ms(long milliseconds);
/* Lets work fill answer in another process; false when it has not done so in time (or has crashed). */
bool attempt(void (*work)(const void *question, void *answer), const void *question, void *answer, size_t size,
             int timeout_ms);

/* ---- the parts of the report ---- */

void load_modules(void);
void report_modules(void);

/* The first of two looks at the timer's interrupts, a second or more apart. */
void interrupts_first_look(void);
/* Those that the kernel has left alone (maxcpus=). */
void bring_cpus_online(void);
void report_system(void);
void report_interrupts(void);

/* Records "devices", and one "block" or "net" for every disk and network interface. */
void report_devices(void);
void put_block(const char *name);
void put_net(const char *name, int wait_ms);
void put_pci_ids(const char *folder);

/* ---- hotplug.c ---- */

void hotplug_open(void);
int hotplug_descriptor(void);
/* Waits until the kernel has announced nothing for a while, and forgets what it has announced. */
void hotplug_settle(void);
/* Reports what has arrived. */
void hotplug_report(void);

/* ---- sha256.c ---- */

void sha256(const uint8_t *bytes, size_t length, uint8_t digest[32]);

#endif
