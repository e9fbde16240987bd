/* --env-file: `of_file` of plan/environment.py. */
#include "joiner.h"

#include <string.h>
#include <sys/stat.h>

static void line(struct list *env, const char *at, size_t length)
{
    length = stripped(&at, length);
    if (!length || *at == '#')
        return;
    if (*at & 0x80 || at[length - 1] & 0x80)
        hand_over(); /* Python knows more blanks */
    struct text name = {0}, value = {0};
    const char *equals = memchr(at, '=', length);
    if (!equals || equals == at)
        hand_over();
    add_bytes(&name, at, (size_t)(equals - at));
    add(&value, "");
    add_bytes(&value, equals + 1, length - name.length - 1);
    set(env, name.at, value.at);
}

void apply_file(struct list *env, const char *path)
{
    struct stat found;
    struct text text = {0};
    /* What can be read only once, a pipe, is left to Python. */
    if (stat(path, &found) || !S_ISREG(found.st_mode))
        hand_over();
    if (!read_file(path, &text, (size_t)1 << 26) || strlen(text.at) != text.length)
        hand_over();
    for (size_t at = 0; at < text.length;) {
        size_t length = strcspn(text.at + at, "\r\n");
        line(env, text.at + at, length);
        at += length + 1;
    }
}
