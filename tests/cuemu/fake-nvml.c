/*
 * A libnvidia-ml of one GPU, at 0000:65:00.0, that says how often it was asked
 * for its free memory. FAKE_NVML: "lost": it finds no device; "blind": no power sensor.
 */
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6 };

struct nvmlDevice {
	unsigned asked;
};
struct memory {
	unsigned long long total, free, used;
};

int nvmlInit_v2(void);
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, struct nvmlDevice **ret);
int nvmlDeviceGetMemoryInfo(struct nvmlDevice *device, struct memory *ret);
int nvmlDeviceGetPowerUsage(struct nvmlDevice *device, unsigned *ret_mw);
int nvmlDeviceGetEnforcedPowerLimit(struct nvmlDevice *device, unsigned *ret_mw);
int nvmlDeviceGetTemperature(struct nvmlDevice *device, int sensor, unsigned *ret_c);
const char *nvmlErrorString(int result);

static struct nvmlDevice only;

static int is(const char *mood)
{
	const char *set = getenv("FAKE_NVML");

	return set && strcmp(set, mood) == 0;
}

int nvmlInit_v2(void)
{
	return SUCCESS;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, struct nvmlDevice **ret)
{
	if (is("lost") || strcmp(bus_id, "0000:65:00.0") != 0)
		return NOT_FOUND;
	*ret = &only;
	return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(struct nvmlDevice *device, struct memory *ret)
{
	device->asked++;
	*ret = (struct memory){ 80ull << 30, (20ull << 30) + device->asked,
				(60ull << 30) - device->asked };
	return SUCCESS;
}

int nvmlDeviceGetPowerUsage(struct nvmlDevice *device, unsigned *ret_mw)
{
	(void)device;
	*ret_mw = 123456;
	return is("blind") ? NOT_SUPPORTED : SUCCESS;
}

int nvmlDeviceGetEnforcedPowerLimit(struct nvmlDevice *device, unsigned *ret_mw)
{
	(void)device;
	*ret_mw = 700000;
	return SUCCESS;
}

int nvmlDeviceGetTemperature(struct nvmlDevice *device, int sensor, unsigned *ret_c)
{
	(void)device;
	*ret_c = sensor == 0 ? 54 : 0;
	return SUCCESS;
}

const char *nvmlErrorString(int result)
{
	return result == NOT_FOUND	 ? "Not Found"
	       : result == NOT_SUPPORTED ? "Not Supported"
					 : "Success";
}
