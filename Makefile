# Each target is one plain call, for systems without make: python3 -m tasks demo
PYTHON ?= python3
.PHONY: env demo test lab bench readme
env:    ; @$(PYTHON) -m tasks env
demo:   ; @$(PYTHON) -m tasks demo
test:   ; @$(PYTHON) -m tasks test
lab:    ; @$(PYTHON) -m tasks lab
bench:  ; @$(PYTHON) -m tasks bench
readme: ; @$(PYTHON) -m tasks readme
