// Answers one call by an engine that torch2engine saved, without Python and PyTorch.
//
//     run_engine MODEL.t2e FOLDER x=4,3,32,32 ...
//
// Enters: the saved engine, every input's shape, and FOLDER/NAME.bin with the input's numbers in C order.
// Leaves: FOLDER/NAME.bin for every output, and a line "NAME DTYPE SHAPE" for each.

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace fs = std::filesystem;
namespace trt = nvinfer1;
using Shapes = std::map<std::string, trt::Dims>;
using Strings = std::map<std::string, std::string>;

void require(bool holds, std::string const& message) {
    if (!holds) throw std::runtime_error(message);
}

void check(cudaError_t status) { require(status == cudaSuccess, std::string("CUDA: ") + cudaGetErrorString(status)); }

// Keeps the last error, for the message that this program ends with.
struct Logger : trt::ILogger {
    std::string last_error;
    void log(Severity severity, char const* message) noexcept override {
        if (severity <= Severity::kERROR) last_error = message;
    }
};

using Memory = std::unique_ptr<void, decltype(&cudaFree)>;

// On the GPU; not even an empty tensor has none, since TensorRT takes no null address.
Memory allocate(std::size_t bytes) {
    void* address = nullptr;
    check(cudaMalloc(&address, bytes + 1));
    return {address, &cudaFree};
}

struct Tensor {
    std::string name;
    bool is_input;
    trt::Dims shape;
    std::size_t bytes;
    Memory memory;
};

std::vector<char> read_file(fs::path const& path) {
    std::ifstream file(path, std::ios::binary);
    require(file.good(), path.string() + ": got no file that can be read; expected one; write it or see its rights");
    return {std::istreambuf_iterator<char>(file), {}};
}

// "x=4,3,32,32" -> the name and the shape; nothing after = is the shape of a single number.
Shapes::value_type parse_shape(std::string const& argument) {
    auto const end = argument.find('=');
    require(end != std::string::npos && argument.find_first_not_of("0123456789,", end + 1) == std::string::npos,
            "arguments: got " + argument + "; expected NAME=SIZES; write it as x=4,3");
    trt::Dims shape{};
    std::stringstream sizes(argument.substr(end + 1));
    for (std::string size; std::getline(sizes, size, ',') && shape.nbDims < trt::Dims::MAX_DIMS; ++shape.nbDims)
        shape.d[shape.nbDims] = std::stoll(size);
    return {argument.substr(0, end), shape};
}

std::size_t bytes_of(trt::DataType type, trt::Dims const& shape) {
    using Type = trt::DataType;
    static std::map<Type, std::size_t> const sizes{{Type::kINT64, 8}, {Type::kFLOAT, 4}, {Type::kINT32, 4},
                                                   {Type::kHALF, 2},  {Type::kBF16, 2},  {Type::kFP8, 1},
                                                   {Type::kINT8, 1},  {Type::kUINT8, 1}, {Type::kBOOL, 1}};
    std::size_t bytes = sizes.at(type);
    for (int i = 0; i < shape.nbDims; ++i) {
        require(shape.d[i] >= 0, "shapes: got none for a dynamic input; expected one for each; add NAME=SIZES");
        bytes *= static_cast<std::size_t>(shape.d[i]);
    }
    return bytes;
}

struct Manifest {
    Strings dtypes;  // of every tensor, as numpy calls them
    std::string precision;
};

// An error if this program's TensorRT-RTX can't read the plan beside the manifest.
Manifest read_manifest(fs::path const& artifact) {
    std::vector<char> const text = read_file(artifact / "manifest.json");
    auto const manifest = nlohmann::json::parse(text.begin(), text.end());
    require(manifest.at("format") == "torch2engine" && manifest.at("kind") == "engine",
            artifact.string() + ": got another artifact; expected an engine; build one and save it");
    int const version = getInferLibVersion();
    std::ostringstream ours;
    ours << "tensorrt_rtx " << version / 10000 << "." << version / 100 % 100 << "." << version % 100 << ".";
    nlohmann::json const hardware = manifest.at("hardware");
    std::string const flavour = hardware.at("flavour");
    std::string const built = flavour + " " + hardware.at("flavour_version").get<std::string>();
    require(built.rfind(ours.str(), 0) == 0, artifact.string() + ": got a plan of " + built + "; expected one of " +
                                                 ours.str() + "*; build the engine or this program with the other");
    Manifest found{{}, manifest.at("precision")};
    for (char const* side : {"inputs", "outputs"})
        for (auto const& tensor : manifest.at("signature").at(side))
            found.dtypes[tensor.at("name")] = tensor.at("dtype");
    return found;
}

// TensorRT-RTX reads this variable at the build and for every context, and refuses a context with another value.
void set_float32_arithmetic(std::string const& precision) {
    if (precision == "tf32")
        unsetenv("NVIDIA_TF32_OVERRIDE");
    else
        setenv("NVIDIA_TF32_OVERRIDE", "0", 1);
}

// A context without working memory, which depends on the profile.
std::unique_ptr<trt::IExecutionContext> make_context(trt::ICudaEngine& engine) {
    auto const strategy = trt::ExecutionContextAllocationStrategy::kUSER_MANAGED;
#ifdef TRT_MAJOR_RTX  // By default kernels change between calls. In version 1.6, shapes after the first are then wrong.
    std::unique_ptr<trt::IRuntimeConfig> config(engine.createRuntimeConfig());
    config->setDynamicShapesKernelSpecializationStrategy(trt::DynamicShapesKernelSpecializationStrategy::kNONE);
    config->setExecutionContextAllocationStrategy(strategy);
    return std::unique_ptr<trt::IExecutionContext>(engine.createExecutionContext(config.get()));
#else  // the headers of TensorRT have no such option
    return std::unique_ptr<trt::IExecutionContext>(engine.createExecutionContext(strategy));
#endif
}

bool contains(trt::ICudaEngine const& engine, int profile, char const* name, trt::Dims const& shape) {
    trt::Dims const built = engine.getTensorShape(name);
    if (built.nbDims != shape.nbDims) return false;
    trt::Dims const low = engine.getProfileShape(name, profile, trt::OptProfileSelector::kMIN);
    trt::Dims const high = engine.getProfileShape(name, profile, trt::OptProfileSelector::kMAX);
    for (int i = 0; i < shape.nbDims; ++i) {
        bool const is_dynamic = built.d[i] == -1;
        if (is_dynamic ? shape.d[i] < low.d[i] || shape.d[i] > high.d[i] : shape.d[i] != built.d[i]) return false;
    }
    return true;
}

// The first optimization profile that contains all shapes; an error if there is none.
int choose_profile(trt::ICudaEngine const& engine, Shapes const& shapes) {
    for (int profile = 0; profile < engine.getNbOptimizationProfiles(); ++profile) {
        bool fits = true;
        for (auto const& [name, shape] : shapes) fits = fits && contains(engine, profile, name.c_str(), shape);
        if (fits) return profile;
    }
    throw std::runtime_error(
        "shapes: got others than every profile; expected those of the manifest; pass NAME=SIZES for each input");
}

// Give every input and output its memory.
std::vector<Tensor> bind(trt::ICudaEngine const& engine, trt::IExecutionContext& context) {
    std::vector<Tensor> tensors;
    for (int i = 0; i < engine.getNbIOTensors(); ++i) {
        char const* name = engine.getIOTensorName(i);
        trt::Dims const shape = context.getTensorShape(name);
        std::size_t const bytes = bytes_of(engine.getTensorDataType(name), shape);
        bool const is_input = engine.getTensorIOMode(name) == trt::TensorIOMode::kINPUT;
        tensors.push_back({name, is_input, shape, bytes, allocate(bytes)});
        require(context.setTensorAddress(name, tensors.back().memory.get()), std::string(name) + ": got no address");
    }
    return tensors;
}

void read_input(Tensor const& tensor, fs::path const& path) {
    std::vector<char> const data = read_file(path);
    require(data.size() == tensor.bytes, path.string() + ": got " + std::to_string(data.size()) + " bytes; expected " +
                                             std::to_string(tensor.bytes) + "; compare dtype and shape");
    check(cudaMemcpy(tensor.memory.get(), data.data(), tensor.bytes, cudaMemcpyHostToDevice));
}

void write_output(Tensor const& tensor, fs::path const& path) {
    std::vector<char> data(tensor.bytes);
    check(cudaMemcpy(data.data(), tensor.memory.get(), tensor.bytes, cudaMemcpyDeviceToHost));
    std::ofstream file(path, std::ios::binary);
    file.write(data.data(), static_cast<std::streamsize>(data.size())).flush();
    require(file.good(), path.string() + ": got no file that can be written; expected one; see the folder's rights");
}

void run(fs::path const& artifact, fs::path const& folder, Shapes const& shapes, Logger& logger) {
    Manifest const manifest = read_manifest(artifact);
    set_float32_arithmetic(manifest.precision);
    std::vector<char> const plan = read_file(artifact / "model.plan");
    std::unique_ptr<trt::IRuntime> runtime(trt::createInferRuntime(logger));
    std::unique_ptr<trt::ICudaEngine> engine(runtime->deserializeCudaEngine(plan.data(), plan.size()));
    require(bool(engine), artifact.string() + ": got a plan that is refused; expected one for this GPU; build it here");
    auto const context = make_context(*engine);
    require(bool(context), artifact.string() + ": got no execution context; expected one; free memory of the GPU");
    cudaStream_t const stream = cudaStreamPerThread;
    int const profile = choose_profile(*engine, shapes);
    require(profile == 0 || context->setOptimizationProfileAsync(profile, stream), "the profile: got an error");
    for (auto const& [name, shape] : shapes)
        require(context->setInputShape(name.c_str(), shape), name + ": got an error for its shape");
    std::int64_t const bytes = engine->getDeviceMemorySizeForProfileV2(profile);
    Memory const memory = allocate(static_cast<std::size_t>(bytes));
    context->setDeviceMemoryV2(memory.get(), bytes);
    std::vector<Tensor> const tensors = bind(*engine, *context);
    for (Tensor const& tensor : tensors)
        if (tensor.is_input) read_input(tensor, folder / (tensor.name + ".bin"));
    require(context->enqueueV3(stream), "the call: got an error of TensorRT-RTX");
    check(cudaStreamSynchronize(stream));
    for (Tensor const& tensor : tensors) {
        if (tensor.is_input) continue;
        write_output(tensor, folder / (tensor.name + ".bin"));
        std::cout << tensor.name << " " << manifest.dtypes.at(tensor.name) << " ";
        for (int i = 0; i < tensor.shape.nbDims; ++i) std::cout << (i ? "," : "") << tensor.shape.d[i];
        std::cout << "\n";
    }
}

int main(int count, char** arguments) {
    Logger logger;
    try {
        require(count >= 3, "usage: run_engine MODEL.t2e FOLDER NAME=SIZES ...");
        Shapes shapes;
        for (int i = 3; i < count; ++i) shapes.insert(parse_shape(arguments[i]));
        run(arguments[1], arguments[2], shapes, logger);
    } catch (std::exception const& error) {
        std::cerr << error.what() << "\n" << logger.last_error << "\n";
        return 1;
    }
}
