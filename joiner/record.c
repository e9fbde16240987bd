/* The node's record: the format is described in node/record.py. A damaged one is handed over. */
#include "joiner.h"
#include "tables.h"

#include <fcntl.h>
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

/* Push the texts of a value, so many, with NUL between. */
static void texts(struct list *list, char *value, size_t length, int count)
{
    for (int i = 1; i < count; i++) {
        char *end = memchr(value, 0, length);
        if (!end)
            damaged();
        push(list, value);
        length -= (size_t)(end + 1 - value);
        value = end + 1;
    }
    push(list, text_of(value, length));
}

static void operation(struct list *list, char *value, size_t length)
{
    texts(list, value, length, 3);
    const char *op = list->at[list->count - 3], *name = list->at[list->count - 2];
    if (!is_one_of(op, OPERATIONS) || strchr(name, '=') || (!*name && strcmp(op, "clear") != 0))
        damaged(); /* execve(2) would take it for another name */
}

static void once(char **where, char *value)
{
    if (!*where)
        *where = value;
}

/* What only a noted plan has; launch/known.py. */
static void of_plan(struct record *record, char *name, char *value, size_t length)
{
    if (is_one_of(name, COPIED))
        add_field(&record->copied, name, value, length);
    if (strcmp(name, "step") == 0)
        texts(&record->steps, value, length, 4);
    else if (strcmp(name, "path") == 0)
        once(&record->path, text_of(value, length));
    else if (strcmp(name, "place") == 0)
        once(&record->place, text_of(value, length));
    else if (strcmp(name, "verify") == 0)
        once(&record->verify, text_of(value, length));
    else if (strcmp(name, "optimized") == 0)
        record->optimized = length != 0;
    else if (strcmp(name, "until") == 0 && !digits(value, length, 12, &record->until))
        damaged();
}

static void field(struct record *record, char *name, char *value, size_t length)
{
    if (record->is_plan)
        of_plan(record, name, value, length);
    if (strcmp(name, "before") == 0)
        operation(&record->before, value, length);
    else if (strcmp(name, "after") == 0)
        operation(&record->after, value, length);
    else if (strcmp(name, "same") == 0)
        texts(&record->same, value, length, 3);
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
        !length_at(data, &at, '\n', &length))
        damaged();
    record->tail = at + length;
    if (data->length < record->tail)
        damaged();
    if (data->length - record->tail > RECORD_LONG)
        hand_over(); /* it is written anew there */
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
    if (!record->is_plan && (!record->user || !record->mnt))
        damaged();
}

/* Read the record of the container `name`, or a noted plan; false where there is none. */
bool record_read(int directory, const char *name, struct record *record)
{
    struct stat found;
    *record = (struct record){0};
    record->is_plan = starts(name, STARTS "/");
    add(&record->data, "");
    record->fd = openat(directory, JOIN(name, "." RECORD_FORMAT),
                        O_RDWR | O_APPEND | O_NOFOLLOW | O_CLOEXEC);
    if (record->fd < 0 && errno == ENOENT)
        return false;
    /* Whose it is, by the descriptor that is then read: base/trust.py says why not. */
    if (record->fd < 0 || fstat(record->fd, &found) || !S_ISREG(found.st_mode) ||
        (found.st_uid != getuid() && found.st_uid != 0) || found.st_mode & 022 ||
        !read_all(record->fd, &record->data, RECORD_MOST))
        hand_over();
    head(record);
    record->members = record->data.at + record->tail;
    record->length = record->data.length - record->tail;
    return true;
}
