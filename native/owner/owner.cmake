# The Python module: one for all versions from 3.11 on, by the stable ABI. Programs that were built with the address or
# thread sanitizer cannot load into Python, and neither could this.
if(NOT TF_SANITIZER MATCHES "address|thread")
  # The checkout's own environment has cffi; the package's build and the tests name theirs.
  if(NOT Python_EXECUTABLE AND EXISTS ${CMAKE_SOURCE_DIR}/../.venv/bin/python)
    set(Python_EXECUTABLE ${CMAKE_SOURCE_DIR}/../.venv/bin/python)
  endif()
  find_package(Python 3.11 REQUIRED COMPONENTS Interpreter Development.Module)
  set(REGION_SOURCE ${CMAKE_BINARY_DIR}/_region.c)
  add_custom_command(
    OUTPUT ${REGION_SOURCE}
    COMMAND ${Python_EXECUTABLE} ${CMAKE_SOURCE_DIR}/tools/region_module.py ${REGION_SOURCE}
    DEPENDS tools/region_module.py generated/region.cdef owner/owner.h)
  add_library(region MODULE owner/owner.c shared/process.c ${REGION_SOURCE})
  set_target_properties(region PROPERTIES OUTPUT_NAME _region PREFIX "" SUFFIX .abi3.so)
  target_include_directories(region PRIVATE owner)
  target_compile_definitions(region PRIVATE Py_LIMITED_API=0x030B0000)
  target_link_libraries(region PRIVATE Python::Module Threads::Threads)
  # What cffi writes is not ours to polish.
  set_source_files_properties(${REGION_SOURCE} PROPERTIES COMPILE_OPTIONS -w)
endif()
