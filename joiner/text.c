/* Bytes that grow: the one place where memory is asked for and strings are copied. */
#include "joiner.h"

#include <stdlib.h>
#include <string.h>

void *memory(size_t bytes)
{
    void *found = calloc(1, bytes ? bytes : 1);
    if (!found)
        fail(125, "there is no memory left for it", "see ulimit -v, and the job's limit");
    return found;
}

void add_bytes(struct text *text, const void *bytes, size_t length)
{
    if (length >= SIZE_MAX / 4 || text->length >= SIZE_MAX / 4)
        fail(125, "there is no memory left for it", "see ulimit -v, and the job's limit");
    if (!text->at || text->length + length >= text->room) {
        size_t room = 2 * (text->length + length) + 64;
        char *more = memory(room);
        if (text->length)
            memcpy(more, text->at, text->length);
        free(text->at);
        text->at = more;
        text->room = room;
    }
    if (length)
        memcpy(text->at + text->length, bytes, length);
    text->length += length;
    text->at[text->length] = 0;
}

void add(struct text *text, const char *string)
{
    add_bytes(text, string, strlen(string));
}

void add_number(struct text *text, unsigned long long number)
{
    if (number > 9)
        add_number(text, number / 10);
    char digit = (char)('0' + number % 10);
    add_bytes(text, &digit, 1);
}

char *joined(const char *const *parts)
{
    struct text text = {0};
    add(&text, "");
    for (; *parts; parts++)
        add(&text, *parts);
    return text.at;
}

char *number_in(const char *before, unsigned long long number, const char *after)
{
    struct text text = {0};
    add(&text, before);
    add_number(&text, number);
    add(&text, after);
    return text.at;
}

void push(struct list *list, const char *string)
{
    if (!list->at || list->count + 1 >= list->room) {
        size_t room = 2 * list->count + 16;
        char **more = memory(room * sizeof *more);
        if (list->count)
            memcpy(more, list->at, list->count * sizeof *more);
        free(list->at);
        list->at = more;
        list->room = room;
    }
    list->at[list->count++] = (char *)string;
    list->at[list->count] = NULL;
}

bool starts(const char *string, const char *with)
{
    return strncmp(string, with, strlen(with)) == 0;
}

bool is_one_of(const char *string, const char *const *list)
{
    while (*list && strcmp(*list, string) != 0)
        list++;
    return *list;
}

bool ends(const char *string, const char *with)
{
    size_t all = strlen(string), part = strlen(with);
    return all >= part && strcmp(string + all - part, with) == 0;
}

static const char BLANK[] = " \t\n\v\f\r\x1c\x1d\x1e\x1f";

/* A word without the blanks around it; its length. */
size_t stripped(const char **word, size_t length)
{
    while (length && strchr(BLANK, **word) && **word)
        (*word)++, length--;
    while (length && strchr(BLANK, (*word)[length - 1]))
        length--;
    return length;
}

/* A decimal number of 1 to `most` digits (19 at most, which fit), and nothing else. */
bool digits(const char *at, size_t length, size_t most, unsigned long long *number)
{
    *number = 0;
    if (length < 1 || length > most)
        return false;
    for (size_t i = 0; i < length; i++) {
        if (at[i] < '0' || at[i] > '9')
            return false;
        *number = *number * 10 + (unsigned long long)(at[i] - '0');
    }
    return true;
}
