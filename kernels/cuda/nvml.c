/* Loaded once; a start that fails is tried again at the next question, for drivers are loaded late. */
#include "kernels/cuda/nvml.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

const char *nvml_library = "libnvidia-ml.so.1";

/* nvml.h, of which only what is used is declared */
typedef struct nvmlDevice *nvml_device;
struct nvml_memory {
	unsigned long long total, free, used;
};
enum { NVML_SUCCESS = 0, NVML_TEMPERATURE_GPU = 0 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards what follows */
static bool is_loaded;
static struct {
	int (*init)(void);
	int (*by_bus_id)(const char *bus_id, nvml_device *ret);
	int (*memory)(nvml_device device, struct nvml_memory *ret);
	int (*power)(nvml_device device, unsigned *ret_mw);
	int (*power_limit)(nvml_device device, unsigned *ret_mw);
	int (*temperature)(nvml_device device, int sensor, unsigned *ret_c);
	const char *(*error)(int result);
} call;

static int find_all(void *library, char *why, size_t why_bytes)
{
	const struct {
		const char *name;
		void *at;
	} symbols[] = {
		{ "nvmlInit_v2", &call.init },
		{ "nvmlDeviceGetHandleByPciBusId_v2", &call.by_bus_id },
		{ "nvmlDeviceGetMemoryInfo", &call.memory },
		{ "nvmlDeviceGetPowerUsage", &call.power },
		{ "nvmlDeviceGetEnforcedPowerLimit", &call.power_limit },
		{ "nvmlDeviceGetTemperature", &call.temperature },
		{ "nvmlErrorString", &call.error },
	};

	for (size_t i = 0; i < sizeof(symbols) / sizeof(*symbols); i++) {
		void *at = dlsym(library, symbols[i].name);

		if (!at) {
			snprintf(why, why_bytes, "'%s' has no %s", nvml_library, symbols[i].name);
			return -ENOENT;
		}
		memcpy(symbols[i].at, &at, sizeof(at));
	}
	return 0;
}

static int failed(const char *what, int result, char *why, size_t why_bytes)
{
	snprintf(why, why_bytes, "%s: %s", what, call.error(result));
	return -EIO;
}

static int load(char *why, size_t why_bytes)
{
	void *library;
	int r;

	if (is_loaded)
		return 0;
	library = dlopen(nvml_library, RTLD_NOW | RTLD_LOCAL);
	if (!library) {
		snprintf(why, why_bytes, "%s", dlerror());
		return -ENOENT;
	}
	r = find_all(library, why, why_bytes);
	if (r == 0) {
		const int result = call.init();

		if (result != NVML_SUCCESS)
			r = failed("nvmlInit_v2", result, why, why_bytes);
	}
	if (r < 0)
		dlclose(library);
	is_loaded = r == 0;
	return r;
}

static void read_facts(nvml_device device, struct nvml_facts *ret)
{
	struct nvml_memory memory;

	*ret = (struct nvml_facts){ 0 };
	if (call.memory(device, &memory) == NVML_SUCCESS) {
		ret->total_bytes = memory.total;
		ret->free_bytes = memory.free;
		ret->known |= NVML_KNOWS_MEMORY;
	}
	if (call.power(device, &ret->power_mw) == NVML_SUCCESS)
		ret->known |= NVML_KNOWS_POWER;
	if (call.power_limit(device, &ret->power_limit_mw) == NVML_SUCCESS)
		ret->known |= NVML_KNOWS_LIMIT;
	if (call.temperature(device, NVML_TEMPERATURE_GPU, &ret->temperature_c) == NVML_SUCCESS)
		ret->known |= NVML_KNOWS_TEMPERATURE;
}

int nvml_read(const char *bus_id, struct nvml_facts *ret, char *ret_why, size_t why_bytes)
{
	nvml_device device;
	int r, result;

	pthread_mutex_lock(&lock);
	r = load(ret_why, why_bytes);
	if (r == 0) {
		result = call.by_bus_id(bus_id, &device);
		if (result == NVML_SUCCESS)
			read_facts(device, ret);
		else
			r = failed("nvmlDeviceGetHandleByPciBusId_v2", result, ret_why, why_bytes);
	}
	pthread_mutex_unlock(&lock);
	return r;
}
