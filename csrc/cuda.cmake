# Finds nvcc, sets PS3_HAS_CUDA and defines ps3_add_kernels(target). Included where PS3_CUDA is ON or AUTO.
#
# nvcc may come from pip alone:
#   pip install "nvidia-cuda-nvcc==13.0.*" "nvidia-cuda-crt==13.0.*" "nvidia-nvvm==13.0.*" "nvidia-cuda-runtime==13.0.*" nvidia-cuda-cccl
#   -DCMAKE_CUDA_COMPILER=.../site-packages/nvidia/cu13/bin/nvcc
if(NOT CMAKE_CUDA_COMPILER)
  include(CheckLanguage)
  check_language(CUDA)
endif()
if(CMAKE_CUDA_COMPILER)
  set(PS3_HAS_CUDA ON)
elseif(PS3_CUDA STREQUAL "ON")
  message(FATAL_ERROR "PS3_CUDA=ON and no nvcc was found; needs CUDA 11.8 or newer. Put nvcc on PATH, or set CMAKE_CUDA_COMPILER to it.")
else()
  message(STATUS "PS3_CUDA=AUTO: no nvcc, building without kernels")
endif()

if(PS3_HAS_CUDA)
  set(PS3_ARCHS_GIVEN "${CMAKE_CUDA_ARCHITECTURES}")
  if(NOT PS3_ARCHS_GIVEN)
    set(CMAKE_CUDA_ARCHITECTURES 80)  # for the compiler check only
  endif()
  # pip's toolkit keeps its libraries in lib, where its nvcc does not look.
  get_filename_component(PS3_CUDA_ROOT "${CMAKE_CUDA_COMPILER}" DIRECTORY)
  get_filename_component(PS3_CUDA_ROOT "${PS3_CUDA_ROOT}" DIRECTORY)
  if(EXISTS "${PS3_CUDA_ROOT}/lib/libcudart_static.a" AND NOT EXISTS "${PS3_CUDA_ROOT}/lib64")
    set(CMAKE_CUDA_FLAGS "${CMAKE_CUDA_FLAGS} -L${PS3_CUDA_ROOT}/lib")
  endif()
  enable_language(CUDA)
  if(NOT PS3_ARCHS_GIVEN)
    # Machine code for every GPU from Turing to Blackwell this nvcc knows, and PTX of the last one for those to come.
    set(PS3_ARCHS_GIVEN 75-real 80-real 86-real 87-real)
    set(last 87)
    foreach(since 11.8:89 11.8:90 12.8:100 12.9:103 13.0:110 12.8:120 12.9:121)
      string(REPLACE ":" ";" since "${since}")
      list(GET since 0 nvcc)
      list(GET since 1 arch)
      if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL nvcc)
        list(APPEND PS3_ARCHS_GIVEN ${arch}-real)
        set(last ${arch})
      endif()
    endforeach()
    list(APPEND PS3_ARCHS_GIVEN ${last}-virtual)
  endif()
  set(CMAKE_CUDA_ARCHITECTURES ${PS3_ARCHS_GIVEN})
  string(REGEX MATCH "^[0-9]+\\.[0-9]+" PS3_CUDA_RUNTIME "${CMAKE_CUDA_COMPILER_VERSION}")
  string(REPLACE ";" " " PS3_ARCHS_TEXT "${PS3_ARCHS_GIVEN}")
endif()

function(ps3_add_kernels target)
  set(kernels csrc/ops/cuda_call.cu csrc/ops/cuda_memory.cu csrc/ops/gather_cuda.cu csrc/ops/position_rows_cuda.cu csrc/ops/scatter_cuda.cu
      csrc/ops/score_cuda.cu csrc/ops/select_cuda.cu)
  target_sources(${target} PRIVATE ${kernels})
  target_compile_definitions(${target} PRIVATE PS3_CUDA_ARCHS="${PS3_ARCHS_TEXT}" PS3_CUDA_RUNTIME="${PS3_CUDA_RUNTIME}")
  # The runtime is linked statically: the library loads where there is no driver and no toolkit.
  # --fmad=false: sums are rounded as on the processor, so that results are equal to the bit.
  # 2810: [[nodiscard]] on Status also warns of assignments, which the host compiler does not.
  set_target_properties(${target} PROPERTIES CUDA_RUNTIME_LIBRARY Static CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:--fmad=false -diag-suppress=2810 -Xcompiler=-ffp-contract=off -Xfatbin=-compress-all --threads=0>)
  # Who links ps3 needs the same runtime, and no toolkit: it is installed beside it.
  find_library(PS3_CUDART libcudart_static.a PATHS "${PS3_CUDA_ROOT}" ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES} PATH_SUFFIXES lib64 lib
               targets/x86_64-linux/lib targets/sbsa-linux/lib targets/aarch64-linux/lib NO_DEFAULT_PATH REQUIRED)
  target_link_libraries(${target} PUBLIC "$<BUILD_INTERFACE:${PS3_CUDART}>" "$<INSTALL_INTERFACE:ps3::cudart>" ${CMAKE_DL_LIBS} rt)
  install(FILES "${PS3_CUDART}" DESTINATION ${PS3_PREFIX}lib)
  if(PS3_STRICT)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra --Werror=all-warnings>)
  endif()
endfunction()
