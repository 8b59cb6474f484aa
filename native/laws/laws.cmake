# Published control laws to compare ours with, one preload library each. For benchmarks; not installed.
foreach(name hami_loop elastic elastic_slewed)
  add_library(law_${name} SHARED laws/${name}.c laws/preload.c)
  set_target_properties(law_${name} PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/laws)
  target_link_libraries(law_${name} PRIVATE Threads::Threads ${CMAKE_DL_LIBS} m)
endforeach()
