/* Every symbol that the TensorRT bindings import from TensorRT's own libraries, doing nothing: enough to import the
 * bindings and read their classes, without libraries of gigabytes and without a GPU. One source serves every library. */

#include <stdbool.h>
#include <stddef.h>

int getNvOnnxParserVersion(void) { return 0; }
bool initLibNvInferPlugins(void) { return false; }
void *createInferBuilder_INTERNAL(void) { return NULL; }
void *createInferRefitter_INTERNAL(void) { return NULL; }
void *createInferRuntime_INTERNAL(void) { return NULL; }
void *createNvOnnxParserRefitter_INTERNAL(void) { return NULL; }
void *createNvOnnxParser_INTERNAL(void) { return NULL; }
void *getBuilderPluginRegistry(void) { return NULL; }
void *getPluginRegistry(void) { return NULL; }
