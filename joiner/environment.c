/* The environment as the command gets it: plan/environment.py and gpu/select.py. */
#include "joiner.h"
#include "tables.h"

#include <stdlib.h>
#include <string.h>

static size_t name_length(const char *entry)
{
    return strcspn(entry, "=");
}

/* By name, and who comes first before: pointers into one array of pointers. */
static int by_name(const void *one, const void *two)
{
    char *const *a = *(char *const *const *)one, *const *b = *(char *const *const *)two;
    size_t la = name_length(*a), lb = name_length(*b), least = la < lb ? la : lb;
    int found = memcmp(*a, *b, least);
    if (found)
        return found;
    if (la != lb)
        return la < lb ? -1 : 1;
    return a < b ? -1 : a > b;
}

/* As Python reads it: what has no "=" is nothing, and of two of one name the first counts. */
void environment_read(struct list *env, char **given)
{
    struct list all = {0};
    for (; *given; given++) {
        if (**given == '=')
            hand_over(); /* no execve(2) of Python's takes such a name */
        if (strchr(*given, '='))
            push(&all, *given);
    }
    char ***sorted = memory((all.count + 1) * sizeof *sorted);
    for (size_t i = 0; i < all.count; i++)
        sorted[i] = &all.at[i];
    qsort(sorted, all.count, sizeof *sorted, by_name);
    for (size_t i = all.count; i-- > 1;) {
        const char *one = *sorted[i], *before = *sorted[i - 1];
        size_t length = name_length(one);
        if (length == name_length(before) && memcmp(one, before, length) == 0)
            *sorted[i] = NULL;
    }
    free(sorted);
    for (size_t i = 0; i < all.count; i++)
        if (all.at[i])
            push(env, all.at[i]);
}

static size_t find(const struct list *env, const char *name)
{
    size_t length = strlen(name), i = 0;
    while (i < env->count && (strncmp(env->at[i], name, length) || env->at[i][length] != '='))
        i++;
    return i;
}

char *get(const struct list *env, const char *name)
{
    size_t i = find(env, name);
    return i < env->count ? env->at[i] + strlen(name) + 1 : NULL;
}

const char *get_or(const struct list *env, const char *name, const char *otherwise)
{
    const char *value = get(env, name);
    return value && *value ? value : otherwise;
}

/* The first of these names that is set, also to nothing; NULL. */
const char *first_set(const struct list *env, const char *const *names)
{
    while (*names && !get(env, *names))
        names++;
    return *names;
}

void set(struct list *env, const char *name, const char *value)
{
    char *entry = JOIN(name, "=", value);
    size_t i = find(env, name);
    if (i < env->count)
        env->at[i] = entry;
    else
        push(env, entry);
}

static void drop(struct list *env, size_t i)
{
    memmove(env->at + i, env->at + i + 1, (env->count - i) * sizeof *env->at);
    env->count--;
}

void unset(struct list *env, const char *name)
{
    size_t i = find(env, name);
    if (i < env->count)
        drop(env, i);
}

void without_host(struct list *env, bool clear, bool shifter)
{
    for (size_t i = 0; !clear && UNSECURE[i]; i++)
        unset(env, UNSECURE[i]);
    for (size_t i = 0; !clear && !shifter && HOST_ONLY[i]; i++)
        unset(env, HOST_ONLY[i]);
    for (size_t i = env->count; i-- > 0;) {
        bool gone = clear;
        for (size_t k = 0; !gone && !shifter && HOST_PREFIXES[k]; k++)
            /* A prefix has no "=", so it is the name's. */
            gone = starts(env->at[i], HOST_PREFIXES[k]);
        if (gone)
            drop(env, i);
    }
}

void apply(struct list *env, const char *op, const char *name, const char *value)
{
    const char *old = get_or(env, name, "");
    if (strcmp(op, "clear") == 0)
        without_host(env, true, false);
    else if (strcmp(op, "unset") == 0)
        unset(env, name);
    else if (strcmp(op, "set") == 0 || !*old)
        set(env, name, value);
    else if (strcmp(op, "append") == 0)
        set(env, name, JOIN(old, ":", value));
    else
        set(env, name, JOIN(value, ":", old));
}

/* Set CUDA_VISIBLE_DEVICES to a list of cards; tell whether a word of it is a number. */
static bool select_words(struct list *env, const char *at, size_t length)
{
    struct text chosen = {0};
    bool numbers = false, more = !(length == 4 && memcmp(at, "none", 4) == 0);
    add(&chosen, "");
    for (bool first = true; more; first = false) {
        const char *comma = memchr(at, ',', length), *word = at;
        size_t part = comma ? (size_t)(comma - at) : length, size = stripped(&word, part);
        add(&chosen, first ? "" : ",");
        add_bytes(&chosen, word, size);
        bool number = size > 0;
        for (size_t i = 0; i < size; i++)
            number = number && word[i] >= '0' && word[i] <= '9';
        numbers = numbers || number;
        more = comma != NULL;
        if (more)
            length -= part + 1, at += part + 1;
    }
    set(env, "CUDA_VISIBLE_DEVICES", chosen.at);
    return numbers;
}

void select_gpus(const struct list *caller, struct list *env)
{
    const struct list *places[] = {env, caller};
    if (get(env, "CUDA_VISIBLE_DEVICES"))
        return;
    for (size_t i = 0; i < 2; i++) {
        const char *at = get_or(places[i], "NVIDIA_VISIBLE_DEVICES", "");
        for (const char *c = at; *c; c++)
            if (*c & 0x80)
                hand_over(); /* Python knows more blanks and digits */
        size_t length = stripped(&at, strlen(at));
        if (!length || memchr(at, '=', length) || (length == 3 && memcmp(at, "all", 3) == 0) ||
            (length == 4 && memcmp(at, "void", 4) == 0))
            continue;
        if (select_words(env, at, length) && !get(env, "CUDA_DEVICE_ORDER"))
            set(env, "CUDA_DEVICE_ORDER", "PCI_BUS_ID");
        return;
    }
}
