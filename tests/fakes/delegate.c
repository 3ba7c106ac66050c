// A delegate of the external interface that takes no operation; it writes the options it was given to `log`.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Delegate {
  void *data;
  int (*prepare)(void *context, struct Delegate *delegate);
  void *copy_from, *copy_to, *free_buffer;
  int64_t flags;
  void *builder;
} Delegate;

static int prepare(void *context, Delegate *delegate) {
  (void)context;
  FILE *log = fopen((const char *)delegate->data, "a");
  if (log) fprintf(log, "prepared\n"), fclose(log);
  return 0;
}

Delegate *tflite_plugin_create_delegate(char **keys, char **values, size_t count, void (*report)(const char *)) {
  Delegate *made = calloc(1, sizeof *made);
  made->prepare = prepare;
  for (size_t i = 0; i < count; i++)
    if (!strcmp(keys[i], "log")) made->data = strdup(values[i]);
  FILE *log = made->data ? fopen((const char *)made->data, "w") : NULL;
  if (!log) {
    report("no log was named");
    return NULL;
  }
  for (size_t i = 0; i < count; i++)
    if (strcmp(keys[i], "log")) fprintf(log, "%s=%s\n", keys[i], values[i]);
  fclose(log);
  return made;
}

void tflite_plugin_destroy_delegate(Delegate *delegate) { free(delegate); }
