"""The six tasks of MAD (Poli et al. 2024, arXiv 2403.17844), as github.com/athms/mad-lab @0f49a45 generates them.

conf/task/mad_*.yaml hold the baselines. The benchmark changes one setting at a time, which gives 66 settings:

    task                     settings   what is changed, each value by itself
    mad_in_context_recall          11   vocab_size 32, 64, 128; seq_len 256, 512, 1024; num_train 6400, 3200, 1600, 800
    mad_noisy_recall               14   vocab_size 48, 80, 144 (16 of them noise); seq_len and num_train as above;
                                        frac_noise 0.4, 0.6, 0.8
    mad_fuzzy_recall               11   vocab_size, seq_len and num_train as in mad_in_context_recall
    mad_selective_copying          13   vocab_size 32, 64, 128; seq_len 512, 1024; num_train as above;
                                        num_tokens_to_copy 32, 64, 96
    mad_compression                11   vocab_size 32, 64, 128; seq_len 64, 128, 256; num_train as above
    mad_memorization                6   vocab_size 512, 1024, 2048, 4096, 8192

An override is `task=NAME task.SETTING=VALUE`, for example `task=mad_noisy_recall task.frac_noise=0.4`. All settings have
1280 test examples. The benchmark trains for 200 epochs, so train.steps is 200 * num_train / train.batch_size.

mad-lab reports `accuracy_macro`, and chooses learning rate and weight decay on the test split. The validation split here is
an addition; it is drawn like the test split. A hash of what tells examples apart says to which split an example belongs, so no
two splits have an example in common (mad-lab only warns). The docstrings of the tasks say where else they differ.
"""
