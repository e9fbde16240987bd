/* The node's record: the format is described in node/record.py. A damaged one is handed over. */
#include "joiner.h"
#include "tables.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void damaged(void)
{
    hand_over();
}

/* A string in the record, which goes on until the NUL that now stands for its newline. */
static char *text_of(char *value, size_t length)
{
    if (strlen(value) != length)
        damaged(); /* a NUL, which no variable and no argument can hold */
    return value;
}

static void operation(struct list *list, char *value, size_t length)
{
    char *op = value, *name = memchr(op, 0, length), *what = NULL;
    if (name)
        what = memchr(name + 1, 0, length - (size_t)(name + 1 - value));
    if (!what || !is_one_of(op, OPERATIONS))
        damaged();
    name++, what++;
    if (strchr(name, '=') || (!*name && strcmp(op, "clear") != 0))
        damaged(); /* execve(2) would take it for another name */
    push(list, op);
    push(list, name);
    push(list, text_of(what, length - (size_t)(what - value)));
}

static void same(struct list *list, char *value, size_t length)
{
    char *path = memchr(value, 0, length), *state = NULL;
    if (path)
        state = memchr(path + 1, 0, length - (size_t)(path + 1 - value));
    if (!state)
        damaged();
    push(list, value);
    push(list, path + 1);
    push(list, text_of(state + 1, length - (size_t)(state + 1 - value)));
}

/* What tells a file from another one, and a changed one; `state_of` of node/record.py. */
static char *state_of(const char *kind, const char *path)
{
    struct stat found;
    struct text text = {0};
    if (strcmp(kind, "variable") == 0)
        return getenv(path) ? getenv(path) : JOIN("");
    int flags = strcmp(kind, "link") == 0 ? AT_SYMLINK_NOFOLLOW : 0;
    if (fstatat(AT_FDCWD, path, &found, flags))
        return JOIN("-");
    add_number(&text, found.st_dev);
    add(&text, " ");
    add_number(&text, found.st_ino);
    if (strcmp(kind, "place") == 0)
        return text.at;
    add(&text, " ");
    add_number(&text, (unsigned long long)found.st_size);
    add(&text, " ");
    add_number(&text, (unsigned long long)found.st_mtim.tv_sec * 1000000000 +
                          (unsigned long long)found.st_mtim.tv_nsec);
    return text.at;
}

static bool is_unchanged(const struct record *record)
{
    const struct list *list = &record->same;
    for (size_t i = 0; i < list->count; i += 3)
        if (strcmp(state_of(list->at[i], list->at[i + 1]), list->at[i + 2]) != 0)
            return false;
    return true;
}

static void once(char **where, char *value)
{
    if (!*where)
        *where = value;
}

static void field(struct record *record, char *name, char *value, size_t length)
{
    if (strcmp(name, "before") == 0)
        operation(&record->before, value, length);
    else if (strcmp(name, "after") == 0)
        operation(&record->after, value, length);
    else if (strcmp(name, "same") == 0)
        same(&record->same, value, length);
    else if (strcmp(name, "entrypoint") == 0)
        push(&record->entrypoint, text_of(value, length));
    else if (strcmp(name, "cmd") == 0)
        push(&record->cmd, text_of(value, length));
    else if (strcmp(name, "workdir") == 0)
        once(&record->workdir, text_of(value, length));
    else if (strcmp(name, "dead") == 0)
        once(&record->dead, text_of(value, length));
    else if (strcmp(name, "server") == 0)
        once(&record->server, text_of(value, length));
    else if (strcmp(name, "request") == 0 && !record->request) {
        record->request = value;
        record->request_length = length;
    } else if (strcmp(name, "user") == 0 && !record->user) {
        if (!digits(value, length, 19, &record->user) || !record->user)
            damaged();
    } else if (strcmp(name, "mnt") == 0 && !record->mnt) {
        if (!digits(value, length, 19, &record->mnt) || !record->mnt)
            damaged();
    }
}

/* Reads the number before `end`; false where none of at most 8 digits is there. */
static bool length_at(const struct text *data, size_t *at, char end, size_t *length)
{
    const char *begin = data->at + *at;
    size_t left = data->length - *at;
    const char *found = memchr(begin, end, left < 9 ? left : 9);
    unsigned long long number;
    if (!found || !digits(begin, (size_t)(found - begin), 8, &number))
        return false;
    *at += (size_t)(found - begin) + 1;
    *length = (size_t)number;
    return true;
}

static void head(struct record *record)
{
    static const char FIRST[] = "udi " RECORD_FORMAT " ";
    struct text *data = &record->data;
    size_t at = sizeof FIRST - 1, length;
    if (data->length < at || memcmp(data->at, FIRST, at) != 0 ||
        !length_at(data, &at, '\n', &length) || length > data->length - at)
        damaged();
    record->tail = at + length;
    while (at < record->tail) {
        if (!length_at(data, &at, ':', &length) || at > record->tail ||
            length >= record->tail - at || data->at[at + length] != '\n')
            damaged();
        char *name = data->at + at, *equals = memchr(name, '=', length);
        if (!equals)
            damaged();
        data->at[at + length] = 0;
        *equals = 0;
        if (strlen(name) != (size_t)(equals - name))
            damaged();
        field(record, name, equals + 1, length - (size_t)(equals + 1 - name));
        at += length + 1;
    }
    if (!record->user || !record->mnt)
        damaged();
}

/* Read the record of the container `name`; false where there is none. */
bool record_read(int directory, const char *name, struct record *record)
{
    struct stat found;
    *record = (struct record){0};
    record->fd = openat(directory, JOIN(name, "." RECORD_FORMAT),
                        O_RDWR | O_APPEND | O_NOFOLLOW | O_CLOEXEC);
    if (record->fd < 0 && errno == ENOENT)
        return false;
    /* Whose it is, by the descriptor that is then read: base/trust.py says why not. */
    if (record->fd < 0 || fstat(record->fd, &found) || !S_ISREG(found.st_mode) ||
        (found.st_uid != getuid() && found.st_uid != 0) || found.st_mode & 022)
        hand_over();
    add(&record->data, "");
    if (!read_all(record->fd, &record->data, RECORD_MOST))
        hand_over();
    head(record);
    return true;
}

/* Whether it is this very container's, and its image server lives. */
bool record_fits(const struct record *record, const struct text *key)
{
    if (!record->request || record->request_length != key->length ||
        memcmp(record->request, key->at, key->length) != 0 || (record->dead && *record->dead) ||
        !is_unchanged(record))
        return false;
    const char *server = record->server ? record->server : "", *blank = strchr(server, ' ');
    unsigned long long pid, start_time;
    if (!blank || !digits(server, (size_t)(blank - server), 10, &pid) || pid < 1 ||
        pid > INT32_MAX || !digits(blank + 1, strlen(blank + 1), 18, &start_time))
        return true; /* nobody serves */
    return alive((long)pid, start_time);
}
