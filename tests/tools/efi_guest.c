/* An EFI program that stands in for a guest in the boot tests: it says what it sees, counts its boots in a UEFI
 * variable and in a file on its ESP, and obeys keys and the power button of QEMU's virt machine.
 *
 * The file \MODE chooses what it does after "ARMVM-GUEST-READY": w waits (keys: q powers off, r resets, anything else
 * is said back as "KEY <its code>"), q powers off, r resets for ever, h hangs deaf, f floods the console.
 *
 * Sources: UEFI 2.10 §4 (tables), §7 and §8 (services), §12.3, §12.4 (console), §13.4, §13.5 (files).
 */
typedef unsigned char u8;
typedef unsigned short c16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef __SIZE_TYPE__ uptr;

typedef struct { u32 a; c16 b, c; u8 d[8]; } Guid;
typedef struct { u64 signature; u32 revision, size, crc, reserved; } Header;
typedef struct { c16 scan, unicode; } Key;
typedef struct Input { void *reset; uptr (*read_key)(struct Input *, Key *); void *event; } Input;
typedef struct Output { void *reset; uptr (*print)(struct Output *, const c16 *); } Output;
typedef struct {
  Header header;
  void *time[4], *virtual_map[2];
  uptr (*get_variable)(const c16 *, const Guid *, u32 *, uptr *, void *);
  void *next_variable;
  uptr (*set_variable)(const c16 *, const Guid *, u32, uptr, const void *);
  void *monotonic;
  void (*reset)(u32 kind, uptr status, uptr size, void *data);
} Runtime;
typedef struct {
  Header header;
  void *before[16];
  uptr (*handle_protocol)(void *, const Guid *, void **);
  void *between[11];
  uptr (*stall)(uptr microseconds);
  uptr (*watchdog)(uptr seconds, u64 code, uptr size, void *data);
} Boot;
typedef struct { Guid guid; void *table; } Table;
typedef struct {
  Header header;
  void *vendor; u32 firmware_revision;
  void *input_handle; Input *input;
  void *output_handle; Output *output;
  void *error_handle; Output *error;
  Runtime *runtime; Boot *boot;
  uptr tables; Table *table;
} System;
typedef struct { u32 revision; void *parent; System *system; void *device; } LoadedImage;
typedef struct File {
  u64 revision;
  uptr (*open)(struct File *, struct File **, const c16 *, u64 mode, u64 attributes);
  uptr (*close)(struct File *);
  void *delete;
  uptr (*read)(struct File *, uptr *, void *);
  uptr (*write)(struct File *, uptr *, const void *);
} File;
typedef struct Volume { u64 revision; uptr (*open)(struct Volume *, File **); } Volume;
typedef struct { u32 id; u8 flags[6]; u32 block_size; } Media;
typedef struct { u64 revision; Media *media; } BlockIo;

static const Guid LOADED_IMAGE = {0x5b1b31a1, 0x9562, 0x11d2, {0x8e, 0x3f, 0, 0xa0, 0xc9, 0x69, 0x72, 0x3b}};
static const Guid FILE_SYSTEM = {0x964e5b22, 0x6459, 0x11d2, {0x8e, 0x39, 0, 0xa0, 0xc9, 0x69, 0x72, 0x3b}};
static const Guid BLOCK_IO = {0x964e5b21, 0x6459, 0x11d2, {0x8e, 0x39, 0, 0xa0, 0xc9, 0x69, 0x72, 0x3b}};
static const Guid FDT = {0xb1b621d5, 0xf19c, 0x41a5, {0x83, 0x0b, 0xd9, 0x15, 0x2c, 0x69, 0xaa, 0xe0}};
static const Guid ACPI = {0x8868e871, 0xe4f1, 0x11d3, {0xbc, 0x22, 0, 0x80, 0xc7, 0x3c, 0x88, 0x81}};
static const Guid OURS = {0x6d5cd3a1, 0x29b5, 0x4ae0, {0x9b, 0x0e, 0x51, 0x8c, 0x5d, 0x2f, 0x33, 0x70}};

enum { SHUTDOWN = 2, COLD = 0 };
static System *sys;

void *memset(void *to, int byte, uptr size) {
  for (volatile u8 *p = to; size--;) *p++ = (u8)byte;
  return to;
}
void *memcpy(void *to, const void *from, uptr size) {
  volatile u8 *p = to;
  for (const u8 *q = from; size--;) *p++ = *q++;
  return to;
}

static void say(const char *text) {
  c16 wide[96];
  uptr n = 0;
  while (*text && n < 95) wide[n++] = (c16)(u8)*text++;
  wide[n] = 0;
  sys->output->print(sys->output, wide);
}
static void say_number(const char *name, u32 value) {
  char digits[12];
  int i = 11;
  digits[i] = 0;
  do {
    u32 tenth = 0, rest = value;
    for (u32 step = 1u << 28; step; step >>= 1)
      if (rest >= 10 * step) { rest -= 10 * step; tenth += step; }
    digits[--i] = (char)('0' + rest);
    value = tenth;
  } while (value && i);
  say(name);
  say(digits + i);
}
static int has_table(const Guid *guid) {
  for (uptr i = 0; i < sys->tables; i++) {
    const u8 *x = (const u8 *)&sys->table[i].guid, *y = (const u8 *)guid;
    uptr same = 0;
    while (same < sizeof(Guid) && x[same] == y[same]) same++;
    if (same == sizeof(Guid)) return 1;
  }
  return 0;
}

static u32 count_in_variable(void) {
  u8 count = 0;
  uptr size = 1;
  sys->runtime->get_variable(L"ArmvmBoots", &OURS, 0, &size, &count);
  count++;
  return sys->runtime->set_variable(L"ArmvmBoots", &OURS, 3 /* non-volatile, boot services */, 1, &count) ? 0 : count;
}
static u32 count_in_file(File *root) {
  u8 count = 0;
  uptr size = 1;
  File *file;
  if (!root->open(root, &file, L"\\COUNT", 1, 0)) {
    file->read(file, &size, &count);
    file->close(file);
  }
  count++;
  size = 1;
  if (root->open(root, &file, L"\\COUNT", 0x8000000000000003ULL, 0)) return 0;
  uptr failed = file->write(file, &size, &count);
  return file->close(file) || failed ? 0 : count;
}
static char mode_in_file(File *root) {
  char mode = 'w';
  uptr size = 1;
  File *file;
  if (!root->open(root, &file, L"\\MODE", 1, 0)) {
    file->read(file, &size, &mode);
    file->close(file);
  }
  return mode;
}

static void wait(void) {
  /* QEMU's virt machine: the power button is pin 3 of the pl061; masked reads are at base + (mask << 2). */
  volatile u32 *button = (volatile u32 *)(uptr)(0x09030000 + (8 << 2));
  for (;;) {
    Key key;
    if (!sys->input->read_key(sys->input, &key)) {
      if (key.unicode == 'q') sys->runtime->reset(SHUTDOWN, 0, 0, 0);
      if (key.unicode == 'r') sys->runtime->reset(COLD, 0, 0, 0);
      say_number("KEY ", key.unicode);
      say("\r\n");
    }
    if (*button) {
      say("POWER-BUTTON\r\n");
      sys->runtime->reset(SHUTDOWN, 0, 0, 0);
    }
    sys->boot->stall(5000);
  }
}

uptr EfiMain(void *image, System *system) {
  LoadedImage *loaded;
  Volume *volume;
  BlockIo *disk;
  File *root;
  sys = system;
  sys->boot->watchdog(0, 0, 0, 0);
  if (sys->boot->handle_protocol(image, &LOADED_IMAGE, (void **)&loaded) ||
      sys->boot->handle_protocol(loaded->device, &FILE_SYSTEM, (void **)&volume) ||
      sys->boot->handle_protocol(loaded->device, &BLOCK_IO, (void **)&disk) || volume->open(volume, &root)) {
    say("no file system\r\n");
    return 1;
  }
  /* QEMU's virt machine: GICD at 0x08000000. The architecture revision is bits [7:4] of ICPIDR2 at 0xfe8 on a GICv2,
   * of GICD_PIDR2 at 0xffe8 (which a GICv2 does not decode) on later ones. */
  u32 gic = (*(volatile u32 *)(uptr)0x08000fe8 >> 4) & 15;
  if (!gic) gic = (*(volatile u32 *)(uptr)0x0800ffe8 >> 4) & 15;
  say_number("\r\nbits=", 8 * sizeof(uptr));
  say_number(" gic=", gic);
  say_number(" fdt=", has_table(&FDT));
  say_number(" acpi=", has_table(&ACPI));
  say_number(" sector=", disk->media->block_size);
  say_number(" boots=", count_in_variable());
  say_number(" disk=", count_in_file(root));
  char mode = mode_in_file(root);
  say("\r\nARMVM-GUEST-READY\r\n");
  if (mode == 'q') sys->runtime->reset(SHUTDOWN, 0, 0, 0);
  if (mode == 'r') sys->runtime->reset(COLD, 0, 0, 0);
  if (mode == 'h') for (;;) __asm__ volatile("wfi");
  if (mode == 'f') for (;;) say("flood flood flood flood flood flood flood flood flood flood flood\r\n");
  wait();
  return 0;
}
