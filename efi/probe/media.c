/* Files in \ARMVM on the ESP that the probe came from. */
#include "probe.h"

#define READ_WRITE (EFI_FILE_READ | EFI_FILE_WRITE)

media_state media;

static const efi_guid file_system_guid = EFI_FILE_SYSTEM_GUID;
static efi_file *folder, *run_file;
static char pending[4096]; /* what media_say has not written yet */
static usize pending_length;

static efi_status open_folder(void) {
    efi_file_system *file_system;
    efi_file *root;
    efi_status status = boot->handle_protocol(self->device, &file_system_guid, (void **)&file_system);
    if (status != EFI_SUCCESS) return status;
    status = file_system->open_volume(file_system, &root);
    if (status != EFI_SUCCESS) return status;
    status = root->open(root, &folder, (efi_char *)u"\\ARMVM", READ_WRITE | EFI_FILE_CREATE, EFI_FILE_DIRECTORY);
    if (status != EFI_SUCCESS) {
        /* Write-protected; the configuration can be read all the same. */
        efi_status other = root->open(root, &folder, (efi_char *)u"\\ARMVM", EFI_FILE_READ, 0);
        if (other != EFI_SUCCESS) folder = 0;
    }
    root->close(root);
    return status;
}

void media_open(void) {
    media.status = open_folder();
    media.file = media.status == EFI_SUCCESS;
}

void media_close(void) {
    media_flush();
    if (run_file) run_file->close(run_file);
    if (folder) folder->close(folder);
    run_file = folder = 0;
}

usize media_load(const efi_char *name, char *text, usize size) {
    efi_file *file;
    usize length = size - 1;
    if (!folder || folder->open(folder, &file, name, EFI_FILE_READ, 0) != EFI_SUCCESS) return 0;
    if (file->read(file, &length, text) != EFI_SUCCESS || length > size - 1) length = 0;
    file->close(file);
    text[length] = 0;
    return length;
}

efi_status media_store(const efi_char *name, const void *data, usize length) {
    efi_file *file;
    usize written = length;
    if (!media.file) return EFI_WRITE_PROTECTED;
    efi_status status = folder->open(folder, &file, name, READ_WRITE | EFI_FILE_CREATE, 0);
    if (status != EFI_SUCCESS) return status;
    status = file->write(file, &written, data);
    if (status == EFI_SUCCESS && written != length) status = EFI_OUT_OF_RESOURCES;
    efi_status flushed = file->flush(file);
    file->close(file);
    return status != EFI_SUCCESS ? status : flushed;
}

static void remove_file(const efi_char *name) {
    efi_file *file;
    if (!media.file || folder->open(folder, &file, name, READ_WRITE, 0) != EFI_SUCCESS) return;
    file->delete(file); /* closes it too */
}

efi_status media_replace(const efi_char *name, const void *data, usize length) {
    remove_file(name);
    return media_store(name, data, length);
}

void media_start_run(u32 run) {
    efi_char name[] = u"RUN00000.TXT";
    for (u32 at = 7; at >= 3; at--, run /= 10) name[at] = (efi_char)('0' + run % 10);
    remove_file(name);
    if (!media.file) return;
    if (folder->open(folder, &run_file, name, READ_WRITE | EFI_FILE_CREATE, 0) != EFI_SUCCESS) run_file = 0;
}

/* A file that cannot be written any more is given up: the console goes on. */
static void write_pending(void) {
    usize written = pending_length;
    pending_length = 0;
    if (!run_file || !written) return;
    if (run_file->write(run_file, &written, pending) != EFI_SUCCESS) run_file = 0;
}

void media_say(const void *data, usize length) {
    if (!run_file) return;
    if (length > sizeof pending - pending_length) write_pending();
    for (usize i = 0; i < length; i++) pending[pending_length++] = ((const char *)data)[i];
}

void media_flush(void) {
    write_pending();
    if (run_file) run_file->flush(run_file);
}

int media_has_variable_file(void) {
    efi_handle *handles;
    usize count = find_handles(&file_system_guid, &handles);
    int found = 0;
    for (usize i = 0; i < count && !found; i++) {
        efi_file_system *file_system;
        efi_file *root, *file;
        if (boot->handle_protocol(handles[i], &file_system_guid, (void **)&file_system) != EFI_SUCCESS) continue;
        if (file_system->open_volume(file_system, &root) != EFI_SUCCESS) continue;
        if (root->open(root, &file, (efi_char *)u"\\ubootefi.var", EFI_FILE_READ, 0) == EFI_SUCCESS) {
            found = 1;
            file->close(file);
        }
        root->close(root);
    }
    if (count) boot->free_pool(handles);
    return found;
}
